"""Read photos given as path, encoded bytes, base64 text or array."""

import base64
import binascii
import os
from pathlib import Path

import numpy as np

from pipeline.data.augment import to_rgb
from pipeline.data.photo import Photo, PhotoError, Pixels, decode_photo
from pipeline.errors import DatasetError

# First characters in base64, as REST clients send bytes, of JPEG, PNG, WebP and TIFF. Those of BMP
# may start a path.
_BASE64_PREFIXES = ("/9j/", "iVBORw0KGgo", "UklGR", "SUkqA", "TU0AK")

_SERVING_VARIABLE = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
"""MLflow sets it in a process that serves over HTTP."""


def read_photo(photo: object, *, name: str) -> Pixels:
    """Read the pixels of a photo, (H, W, 3) RGB; see `open_photo`."""
    return open_photo(photo, name=name).pixels


def open_photo(photo: object, *, name: str) -> Photo:
    """Read a path, an encoded file as bytes or base64 text, or a uint8 array.

    EXIF orientation is not applied, as in COCO's tools.

    Args:
        photo: the photo, in any of these forms.
        name: its name in error messages.

    Raises:
        DatasetError: it cannot be read, or an HTTP client sent a path.
    """
    if isinstance(photo, np.ndarray):
        return Photo(to_rgb(photo, name=name), [])
    if isinstance(photo, str | Path) and not _is_base64(photo):
        name = f"{name} ({str(photo)[:200]})"
    data = read_bytes(photo, name=name)
    try:
        return decode_photo(data)
    except PhotoError as error:
        raise DatasetError(f"{name}: {error} ({len(data)} bytes)") from error


def read_bytes(photo: object, *, name: str) -> bytes:
    """Read an encoded file, given as path, bytes or base64 text.

    Raises:
        DatasetError: it cannot be read, or an HTTP client sent a path.
    """
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    if isinstance(photo, str) and _is_base64(photo):
        try:
            return base64.b64decode(photo, validate=True)
        except binascii.Error as error:
            raise DatasetError(f"{name}: broken base64 ({error})") from error
    if isinstance(photo, str | Path):
        if os.environ.get(_SERVING_VARIABLE):
            # Reading paths would expose the files of this machine to any client.
            raise DatasetError(
                f"{name}: a served model takes photos as base64 of JPEG, PNG, WebP or TIFF"
            )
        try:
            return Path(photo).read_bytes()
        except OSError as error:
            raise DatasetError(f"{name}: {error.strerror or error}") from error
    raise DatasetError(f"{name}: {type(photo).__name__} is not a path, bytes or an array")


def _is_base64(photo: str | Path) -> bool:
    return isinstance(photo, str) and photo.startswith(_BASE64_PREFIXES)
