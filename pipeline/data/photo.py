"""Decode photos: the one decoder of ingest, audit, training, prediction and serving.

OpenCV decides what can be read. Pillow only reads metadata; a photo with broken metadata is as good
as another. What the decoder changes (bits, palette, alpha, orientation) is a notice with numbers.
"""

import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from bsm.checkpoints.foreign_files import describe_foreign_file
from pipeline.data.label_png import (
    LabelError,
    check_chunks,
    has_false_lengths,
    open_image,
    read_header,
)
from pipeline.errors import DatasetError

Pixels = NDArray[np.uint8]

PHOTO_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png"),
    *(".webp", ".tif", ".tiff", ".bmp", ".dib"),
)
"""Endings of the formats that are read. The content decides; an ending may be wrong."""

FORMAT_NAMES = "JPEG, PNG, WebP, TIFF or BMP"

MAX_IMAGE_BYTES = 64_000_000
"""File size limit: 32 files, a row group, fit into one Arrow array of 2 GiB."""

MAX_PIXELS = 89_478_485
"""Default pixel limit, Pillow's own: 24-bit pixels that fill a quarter of a GiB."""

# Annotations refer to the pixels as stored, so EXIF orientation is not applied.
# Gray, CMYK and palette images become RGB, alpha is dropped, 16 bits are cut to 8.
_DECODE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

_DECODE_SMALL = cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    *((start, "TIFF") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
)

_EXIF_ORIENTATION = 0x0112

# Markers that start with a frame's header; the other three of the range are tables.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_JPEG_SCAN = 0xDA
# APP1 (EXIF, XMP) to APP13; APP0 is JFIF's, and APP14 Adobe's, which counts with four channels.
_JPEG_METADATA = frozenset(range(0xE1, 0xEE)) | {0xEF}


_OLD_BMP_BYTES = 12
"""Size of OS/2's header, with sides of 16 bits."""

_BIG_TIFF = 43
_TIFF_ENTRIES = 4096
_TIFF_SIDES = (256, 257, 322, 323)
"""Tags: width, height, and those of a tile."""
_TIFF_KINDS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_TILE_SIDE = 4096


class PhotoError(DatasetError):
    """A photo that cannot be read; `kind` is one of pipeline.data.problems.KINDS."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Photo(NamedTuple):
    """A decoded photo."""

    pixels: Pixels
    """(H, W, 3) RGB."""
    notices: list[tuple[str, str]]
    """Kind and reason of everything that the decoder changed."""


class _Metadata(NamedTuple):
    """The properties of a photo that Pillow reads; defaults where it finds none."""

    mode: str = ""
    pictures: int = 1
    orientation: int = 1
    palette_colors: int = 0


def decode_image(image: bytes | memoryview, *, name: str) -> Pixels:
    """Decode an image file to (H, W, 3) RGB, without looking for notices.

    Args:
        image: the encoded file.
        name: of the image, for errors.

    Raises:
        DatasetError: the image cannot be decoded.
    """
    pixels = _decode(image, _DECODE)
    if pixels is None:
        raise DatasetError(
            f"{name} cannot be decoded as an image ({len(image)} bytes): "
            f"{_explain(bytes(image))}; replace or remove the file"
        )
    return np.asarray(pixels, dtype=np.uint8)


def decode_photo(data: bytes, *, max_pixels: int = 2 * MAX_PIXELS) -> Photo:
    """Decode a photo and list what the decoder changed.

    Args:
        data: the encoded file.
        max_pixels: a larger image is refused before it is decoded.

    Raises:
        PhotoError: it is not a photo, too large, or cannot be decoded to its end.
    """
    photo_format = _require_photo(data, max_pixels=max_pixels)
    pixels = _decode(data, _DECODE)
    if pixels is None:
        raise PhotoError("image_unreadable", _explain(data))
    return Photo(pixels, _find_notices(data, photo_format, pixels))


def _require_photo(data: bytes, *, max_pixels: int) -> str:
    """Return the format of a photo, from its header.

    Raises:
        PhotoError: it is not a photo, or too large.
    """
    photo_format = find_format(data)
    if not photo_format:
        kind = "image_format" if data else "image_unreadable"
        raise PhotoError(kind, _explain(data))
    height, width = read_size_hw(data)
    if width * height > max_pixels:
        raise PhotoError("image_too_large", f"{width} x {height} pixels, the limit is {max_pixels}")
    return photo_format


def check_image(
    data: bytes, size_hw: tuple[int, int] | None, *, max_pixels: int
) -> list[tuple[str, str]]:
    """Check an encoded image with the decoder of training.

    Args:
        data: the file.
        size_hw: the size listed for it, if any.
        max_pixels: a larger image is refused before it is decoded.

    Returns:
        Kind and reason of each problem and notice.
    """
    if len(data) > MAX_IMAGE_BYTES:
        return [("image_too_large", f"more than {MAX_IMAGE_BYTES} bytes")]
    try:
        (height, width), notices = _check_pixels(data, max_pixels=max_pixels)
    except PhotoError as error:
        return [(error.kind, str(error))]
    if size_hw is None or (height, width) == size_hw:
        return notices
    listed = f"{size_hw[1]} x {size_hw[0]}"
    return [
        ("image_size", f"{width} x {height} in the file, {listed} in the annotations"),
        *notices,
    ]


def _check_pixels(data: bytes, *, max_pixels: int) -> tuple[tuple[int, int], list[tuple[str, str]]]:
    """Return the size of a photo and what the decoder changes; raises what decode_photo does."""
    if find_format(data) == "JPEG" and (size_hw := _read_jpeg_size_hw(data)):
        _require_photo(data, max_pixels=max_pixels)
        # Reads all of the file, and makes an eighth of the pixels in half of the time.
        small = _decode(data, _DECODE_SMALL)
        if small is not None and small.shape[:2] == tuple(-(-side // 8) for side in size_hw):
            return size_hw, _find_notices(data, "JPEG", small)
    photo = decode_photo(data, max_pixels=max_pixels)
    return (photo.pixels.shape[0], photo.pixels.shape[1]), photo.notices


def find_format(data: bytes) -> str:
    """Return the format of a file by its first bytes; "" if it is not a photo's."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for start, name in _SIGNATURES if data.startswith(start)), "")


def read_size_hw(data: bytes) -> tuple[int, int]:
    """Read the size of a photo from its header.

    Raises:
        PhotoError: it has no valid header.
    """
    photo_format = find_format(data)
    if photo_format == "PNG":
        with suppress(LabelError):
            return read_header(data).size_hw
    # Not with the decoder: what it would need is known only after this.
    with suppress(struct.error, IndexError):
        if (reader := _SIZE_READERS.get(photo_format)) and (size_hw := reader(data)):
            return size_hw
    with suppress(Exception), open_image(data) as image:  # decoders raise many types
        return image.height, image.width
    raise PhotoError("image_unreadable", _explain(data))


def _decode(data: bytes | memoryview, flags: int) -> NDArray[Any] | None:
    encoded = np.frombuffer(data, dtype=np.uint8)
    if len(encoded) == 0 or (find_format(bytes(data[:16])) == "PNG" and has_false_lengths(data)):
        return None
    try:
        return cv2.imdecode(encoded, flags)
    except cv2.error:  # the header asks for more than OpenCV's limits
        return None


def _read_jpeg_size_hw(data: bytes) -> tuple[int, int] | None:
    """Read the size of a JPEG's frame, whatever its metadata hold."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return (height, width) if height and width else None
        # 0xFF may be repeated before a marker.
        at += 1 if data[at + 1] == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _read_bmp_size_hw(data: bytes) -> tuple[int, int]:
    """Read the size in a BMP's header; a negative height means that rows start at the top."""
    is_old = struct.unpack_from("<I", data, 14)[0] == _OLD_BMP_BYTES
    width, height = struct.unpack_from("<HH" if is_old else "<ii", data, 18)
    return abs(height), abs(width)


def _read_tiff_size_hw(data: bytes) -> tuple[int, int] | None:
    """Read the size in a TIFF's first directory, the largest if it has several.

    Pillow takes the last and OpenCV the first. A tile counts if it is larger than the limits of
    real ones, as OpenCV reserves memory for it.
    """
    order = "<" if data[:2] == b"II" else ">"
    is_big = struct.unpack_from(order + "H", data, 2)[0] == _BIG_TIFF
    start, count, entry, value = ("Q", "Q", 20, 12) if is_big else ("I", "H", 12, 8)
    (at,) = struct.unpack_from(order + start, data, 8 if is_big else 4)
    (entries,) = struct.unpack_from(order + count, data, at)
    at += struct.calcsize(order + count)
    sizes: dict[int, int] = {}
    for number in range(min(entries, _TIFF_ENTRIES)):
        tag, kind = struct.unpack_from(order + "HH", data, at + number * entry)
        if tag in _TIFF_SIDES and kind in _TIFF_KINDS:
            place = at + number * entry + value
            if struct.calcsize(_TIFF_KINDS[kind]) > struct.calcsize(start):
                (place,) = struct.unpack_from(order + start, data, place)
            (side,) = struct.unpack_from(order + _TIFF_KINDS[kind], data, place)
            sizes[tag] = max(side, sizes.get(tag, 0))
    width, height, *tile = (sizes.get(tag, 0) for tag in _TIFF_SIDES)
    if max(tile) > _TILE_SIDE:
        width, height = max(width, tile[0]), max(height, tile[1])
    return (height, width) if width and height else None


def _is_bare_jpeg(data: bytes) -> bool:
    """Tell whether a JPEG has one or three channels, and no metadata but JFIF's and comments.

    Then there is nothing to notice; Pillow takes longer to say so.
    """
    at, channels = 2, 0
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _JPEG_SCAN:
            return channels in (1, 3)
        if marker in _JPEG_METADATA:
            return False
        if marker in _JPEG_FRAMES:
            channels = data[at + 9]
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return False


def _explain(data: bytes) -> str:
    """Say why a photo cannot be decoded."""
    if not data:
        return "the file is empty"
    photo_format = find_format(data)
    try:
        if photo_format == "PNG":
            check_chunks(data)
        with open_image(data) as image:
            if not photo_format:
                return f"it is {image.format}, not {FORMAT_NAMES}"
            mode = image.mode
            image.load()
    except UnidentifiedImageError:
        start = f"not an image file, or its header is broken: it starts with {data[:8]!r}"
        return describe_foreign_file(data[:128]) or start
    except Exception as error:  # decoders raise many types on broken files
        return str(error)[:160] or type(error).__name__
    return f"OpenCV does not read this kind of {photo_format} (pixels of type {mode})"


def _read_metadata(data: bytes) -> _Metadata:
    found = _Metadata()
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        with open_image(data) as image:
            # Decodes the image, which only a palette is worth.
            colors = len(image.getpalette() or ()) // 3 if image.mode == "P" else 0
            found = _Metadata(image.mode, palette_colors=colors)
            with suppress(Exception):
                found = found._replace(pictures=getattr(image, "n_frames", 1))
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            found = found._replace(orientation=orientation)
    return found


def _find_notices(data: bytes, photo_format: str, pixels: Pixels) -> list[tuple[str, str]]:
    if photo_format == "JPEG" and _is_bare_jpeg(data):
        return []
    metadata = _read_metadata(data)
    notices = []
    if metadata.orientation not in (0, 1):
        notices.append(("image_turned", f"EXIF orientation {metadata.orientation}"))
    if metadata.pictures > 1:
        notices.append(("image_pictures", f"the first of {metadata.pictures} is taken"))
    if metadata.mode == "CMYK":
        notices.append(("image_cmyk", "4 channels become 3"))
    is_plain = photo_format == "JPEG" or metadata.mode in ("1", "L", "RGB")
    has_palette = metadata.mode == "P"
    if photo_format == "PNG":
        header = read_header(data)
        is_plain = header.bits < 16 and not header.has_palette and not header.has_alpha
        has_palette = header.has_palette
    if has_palette:
        count = metadata.palette_colors or "the"
        notices.append(("image_palette", f"{count} colors of the palette become RGB"))
    if not is_plain or photo_format == "TIFF":
        notices += _compare_stored(data, pixels)
    return notices


def _compare_stored(data: bytes, pixels: Pixels) -> list[tuple[str, str]]:
    """List the bits and the transparency that were lost."""
    stored = _decode(data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if stored is None:
        return []
    notices = []
    if stored.dtype.itemsize > 1:
        colors = stored[..., :3] if stored.ndim == 3 else stored
        reason = f"values up to {colors.max()} become values up to {pixels.max()}"
        notices.append(("image_bits", reason))
    if stored.ndim == 3 and stored.shape[2] == 4:
        share = float((stored[..., 3] < np.iinfo(stored.dtype).max).mean())
        if share > 0:
            notices.append(("image_alpha", f"{100 * share:.3g} % of the pixels are not opaque"))
    return notices


_SIZE_READERS: dict[str, Callable[[bytes], tuple[int, int] | None]] = {
    "JPEG": _read_jpeg_size_hw,
    "BMP": _read_bmp_size_hw,
    "TIFF": _read_tiff_size_hw,
}
"""By format; the others are read by Pillow, or here where Pillow and OpenCV agree on the header."""
