"""Read the photos that a page of models shows."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.data.photo import FORMAT_NAMES, PHOTO_ENDINGS, PhotoError, Pixels, decode_photo
from pipeline.errors import DatasetError

_log = logging.getLogger(__name__)


class NamedPhoto(NamedTuple):
    """A decoded photo."""

    name: str
    """File name, without folders."""
    pixels: Pixels
    """(H, W, 3) RGB."""


def read_photos(images: Sequence[str], *, limit: int) -> list[NamedPhoto]:
    """Read photos, in the given order; one that cannot be read is named in the log.

    Args:
        images: files, and folders, which are searched recursively.
        limit: largest number of photos.

    Raises:
        DatasetError: a path does not exist, or no photo can be read.
    """
    missing = [each for each in images if not Path(each).exists()]
    if missing or not images:
        raise DatasetError(
            f"--images: there is no {', '.join(missing)}"
            if missing
            else "--images: name at least one photo or folder"
        )
    photos: list[NamedPhoto] = []
    paths = [path for each in images for path in _list_photos(Path(each))]
    for path in paths:
        if len(photos) == limit:
            _log.info("view: the first %d of %d photos; see more with --photos", limit, len(paths))
            break
        try:
            photos.append(NamedPhoto(path.name, decode_photo(path.read_bytes()).pixels))
        except (PhotoError, OSError) as error:
            _log.warning("view: %s is left out: %s", path, error)
    if not photos:
        raise DatasetError(
            f"--images: no {FORMAT_NAMES} file can be read in {', '.join(images)}; give others"
        )
    return photos


def fit_into(pixels: Pixels, *, width_px: int) -> Pixels:
    """Scale a photo to a width."""
    height = max(1, round(width_px * pixels.shape[0] / pixels.shape[1]))
    method = cv2.INTER_AREA if pixels.shape[1] > width_px else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (width_px, height), interpolation=method), np.uint8)


def _list_photos(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    files = (each for each in sorted(path.rglob("*")) if each.is_file())
    yield from (each for each in files if each.suffix.lower() in PHOTO_ENDINGS)
