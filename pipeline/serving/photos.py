"""A photo in any form that people hand over, as pixels, or one sentence on why not."""

import base64
import binascii
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.data.augment import Pixels, decoded, rgb
from pipeline.errors import DatasetError

# How base64 of a JPEG and of a PNG begins: what a REST caller sends for bytes.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo")

_SERVED = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
"""What MLflow sets in the process that answers over HTTP."""


def read_photo(photo: object, *, name: str) -> Pixels:
    """Read a path, an encoded file as bytes or base64 text, or a uint8 array.

    Pixels are taken as stored: an EXIF orientation is not applied, as COCO's tools do.

    Args:
        photo: what was handed over.
        name: what to call it in an error.

    Returns:
        (H, W, 3) RGB.

    Raises:
        DatasetError: it cannot be read; or it is a path, and a caller over HTTP named it.
    """
    if isinstance(photo, np.ndarray):
        return rgb(photo, name=name)
    if isinstance(photo, str | Path) and not _is_base64(photo):
        name = f"{name} ({str(photo)[:200]})"
    data = _encoded(photo, name=name)
    try:
        # Reads the header only; refuses what would fill the memory when decoded.
        Image.open(io.BytesIO(data)).close()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        reason = "no image file" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DatasetError(f"{name}: {reason} ({len(data)} bytes)") from error
    return decoded(data, name=name)


def check_photos(photos: Sequence[Any]) -> None:
    """Find all photos that cannot be read before the first one is worked on.

    Raises:
        DatasetError: names each of them, by its index.
    """
    # Decoding twice costs a few milliseconds a photo; holding all of them decoded costs the memory.
    problems = []
    for index, photo in enumerate(photos):
        try:
            read_photo(photo, name=f"image {index}")
        except DatasetError as error:
            problems.append(str(error))
    if problems:
        raise DatasetError(
            f"{len(problems)} of {len(photos)} images cannot be read, nothing was predicted:\n  "
            + "\n  ".join(problems)
            + "\nRepair these images or leave them out. Paths, encoded bytes and uint8 arrays "
            "(H, W, 3) can be read."
        )


def _is_base64(photo: str | Path) -> bool:
    return isinstance(photo, str) and photo.startswith(_BASE64_STARTS)


def _encoded(photo: object, *, name: str) -> bytes:
    if isinstance(photo, bytes | bytearray | memoryview):
        return bytes(photo)
    if isinstance(photo, str) and _is_base64(photo):
        try:
            return base64.b64decode(photo, validate=True)
        except binascii.Error as error:
            raise DatasetError(f"{name}: broken base64 ({error})") from error
    if isinstance(photo, str | Path):
        if os.environ.get(_SERVED):
            # Whether and what a file of this machine is would be told to anyone who asks.
            raise DatasetError(f"{name}: a served model takes photos as base64 of JPEG or PNG")
        try:
            return Path(photo).read_bytes()
        except OSError as error:
            raise DatasetError(f"{name}: {error.strerror or error}") from error
    raise DatasetError(f"{name}: is a {type(photo).__name__}, not a path, bytes or an array")
