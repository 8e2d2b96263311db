"""Label PNGs: pixels are numbers, read exactly as written, or refused with the reason.

Image libraries are lenient with such files: they pad truncated data, turn palettes into colors and
stretch 4 bits to 8. Here every checksum is verified, and only one channel of the expected bit depth
is accepted.
"""

import io
import struct
import warnings
import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bsm.checkpoints.foreign_files import describe_foreign_file

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_COLORS = {
    0: "one gray channel",
    2: "3 color channels",
    3: "a palette",
    4: "a gray and an alpha channel",
    6: "4 channels, color and alpha",
}

_STRETCH = {2: 85, 4: 17}
"""Factor by which Pillow stretches gray values of few bits to 255."""

_GRAY, _PALETTE, _GRAY_ALPHA, _COLOR_ALPHA = 0, 3, 4, 6


class LabelError(ValueError):
    """A label file that breaks a rule; `kind` is one of pipeline.data.problems.KINDS."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Header(NamedTuple):
    """The header of a PNG."""

    size_hw: tuple[int, int]
    bits: int
    color: int
    """Color type in PNG's numbering."""

    @property
    def is_gray(self) -> bool:
        """Tell whether pixels are gray values."""
        return self.color == _GRAY

    @property
    def has_alpha(self) -> bool:
        """Tell whether pixels have an alpha channel."""
        return self.color in (_GRAY_ALPHA, _COLOR_ALPHA)

    @property
    def has_palette(self) -> bool:
        """Tell whether pixels are palette indices."""
        return self.color == _PALETTE


def open_image(data: bytes) -> Image.Image:
    """Open an image without Pillow's warning about large ones: callers have their own limits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data))


def read_header(data: bytes) -> Header:
    """Read the header alone.

    Raises:
        LabelError: the data is not a PNG.
    """
    if not data.startswith(_SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 26:
        start = f"it starts with {data[:8]!r}" if data else "the file is empty"
        foreign = describe_foreign_file(data[:128]) if data else ""
        raise LabelError("label_format", foreign or f"{start}, which is not a PNG")
    width, height, bits, color = struct.unpack(">IIBB", data[16:26])
    return Header((height, width), bits, color)


def read_values(
    data: bytes, *, bits: int | None, max_pixels: int | None, take_palette: bool = False
) -> NDArray[Any]:
    """Read the pixel values of a label image.

    Args:
        data: the encoded file.
        bits: required bits per pixel, 8 or 16; None accepts all: 1, 2, 4, 8 and 16.
        max_pixels: a larger image is refused before it is decoded; None: Pillow's limit.
        take_palette: accept an image with a palette and read its indices.

    Returns:
        (H, W): bool for 1 bit, uint8 for 2, 4 and 8 bits and palettes, uint16 for 16 bits.

    Raises:
        LabelError: the first broken rule.
    """
    header = read_header(data)
    height, width = header.size_hw
    if max_pixels is not None and height * width > max_pixels:
        raise LabelError("label_size", f"{width} x {height} pixels, the limit is {max_pixels}")
    if header.has_palette and not take_palette:
        raise LabelError("label_palette", "it has a palette")
    if not header.is_gray and not header.has_palette:
        channels = _COLORS.get(header.color, "unknown channels")
        fix = "if they are equal, keep one: Image.open(FILE).getchannel(0).save(FILE)"
        raise LabelError("label_format", f"it has {channels}; {fix}")
    if header.is_gray and bits not in (None, header.bits):
        raise LabelError("label_depth", f"it has {header.bits} bits per pixel, expected {bits}")
    check_chunks(data)
    try:
        values = np.array(open_image(data))
    except Exception as error:  # decoders raise many types on broken files
        raise LabelError("label_unreadable", str(error)[:160] or type(error).__name__) from error
    if header.is_gray and header.bits in _STRETCH:
        values //= _STRETCH[header.bits]
    # Old versions of Pillow give 32 bits for 16.
    return values.astype(np.uint16) if header.bits == 16 else values


def has_false_lengths(data: bytes | memoryview) -> bool:
    """Tell whether a chunk claims to be longer than the file; OpenCV reserves what it claims."""
    start = len(_SIGNATURE)
    while start + 8 <= len(data) and bytes(data[start + 4 : start + 8]) != b"IEND":
        (length,) = struct.unpack_from(">I", data, start)
        start += 12 + length
    return start > len(data)


def check_chunks(data: bytes) -> None:
    """Verify the checksum of every chunk up to the last one.

    Raises:
        LabelError: a checksum is wrong, or the last chunk is missing.
    """
    start = len(_SIGNATURE)
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        name, stop = data[start + 4 : start + 8], start + 8 + length
        if stop + 4 > len(data):
            break
        (checksum,) = struct.unpack_from(">I", data, stop)
        if zlib.crc32(data[start + 4 : stop]) != checksum:
            raise LabelError("label_unreadable", f"the checksum of chunk {name!r} is wrong")
        if name == b"IHDR" and start > len(_SIGNATURE):
            # Pillow takes the last header, and every rule was checked on the first.
            raise LabelError("label_unreadable", "it has a second header")
        if name == b"IEND":
            return
        start = stop + 4
    raise LabelError("label_unreadable", f"it is cut off after {len(data)} bytes")
