"""PNGs whose pixels are numbers, not colors: read exactly as written, or refused with the reason.

Image libraries are kind to such files: they fill up what is cut off, turn palettes into colors and
stretch 4 bits to 8. Here every checksum is checked, and only one gray channel of the wanted depth
is taken.
"""

import io
import struct
import warnings
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_COLORS = {
    0: "one gray channel",
    2: "3 color channels",
    3: "a palette",
    4: "a gray and an alpha channel",
    6: "4 channels, color and alpha",
}
_GRAY, _PALETTE = 0, 3


class LabelError(ValueError):
    """A label file that breaks a rule; `kind` is one of pipeline.data.problems.KINDS."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Header(NamedTuple):
    """What a PNG says of itself."""

    size_hw: tuple[int, int]
    bits: int
    color: int
    """Color type, as PNG numbers it."""

    @property
    def is_gray(self) -> bool:
        """Whether pixels are single numbers."""
        return self.color == _GRAY

    @property
    def has_palette(self) -> bool:
        """Whether pixels are numbers of colors."""
        return self.color == _PALETTE


def read_header(data: bytes) -> Header:
    """Read the header alone.

    Raises:
        LabelError: it is no PNG.
    """
    if not data.startswith(_SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 26:
        told = f"it starts with {data[:8]!r}" if data else "the file is empty"
        raise LabelError("label_format", f"{told}, which is no PNG")
    width, height, bits, color = struct.unpack(">IIBB", data[16:26])
    return Header((height, width), bits, color)


def read_values(
    data: bytes, *, bits: int, most_pixels: int, take_palette: bool = False
) -> NDArray[np.unsignedinteger[Any]]:
    """Read the numbers of a label image.

    Args:
        data: the encoded file.
        bits: 8 or 16, of one pixel.
        most_pixels: a larger one is refused before it is decoded.
        take_palette: of an image with a palette, read the numbers of the colors.

    Returns:
        (H, W).

    Raises:
        LabelError: it breaks a rule; the first broken one is told.
    """
    header = read_header(data)
    height, width = header.size_hw
    if height * width > most_pixels:
        raise LabelError(
            "label_size", f"{width} x {height} pixels are more than the limit of {most_pixels}"
        )
    if header.has_palette and not take_palette:
        raise LabelError("label_palette", "it has a palette")
    if not header.is_gray and not header.has_palette:
        raise LabelError("label_format", f"it has {_COLORS.get(header.color, 'unknown channels')}")
    if header.is_gray and header.bits != bits:
        raise LabelError("label_depth", f"it has {header.bits} bits a pixel, it must have {bits}")
    _check_chunks(data)
    try:
        with warnings.catch_warnings():
            # The limit above is the user's.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            values: NDArray[np.unsignedinteger[Any]] = np.asarray(Image.open(io.BytesIO(data)))
    except Exception as error:  # decoders raise what they like on broken files
        raise LabelError("label_unreadable", str(error)[:160] or type(error).__name__) from error
    return values


def _check_chunks(data: bytes) -> None:
    """Follow the chunks to the last one, and check what each promises of itself."""
    place = len(_SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        name, stop = data[place + 4 : place + 8], place + 8 + length
        if stop + 4 > len(data):
            break
        (checksum,) = struct.unpack_from(">I", data, stop)
        if zlib.crc32(data[place + 4 : stop]) != checksum:
            raise LabelError("label_unreadable", f"the checksum of a chunk {name!r} is wrong")
        if name == b"IEND":
            return
        place = stop + 4
    raise LabelError("label_unreadable", f"it is cut off after {len(data)} bytes")
