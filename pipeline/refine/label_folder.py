"""Masks of label PNGs: 8-bit files whose pixel values are instance ids, as in DAVIS.

0 is background and 255 is void; both stay. Every other value is one object, also where its pixels
are not connected. An object may grow into background and neighbors, never into void. A pixel that
several refined objects claim stays with its owner if that is one of them, else the smallest has it;
a pixel that none claims becomes background. A palette is kept.
"""

import io
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import storage
from pipeline.data.label_png import LabelError, open_image, read_values
from pipeline.data.run_lengths import encode_instance_masks
from pipeline.errors import DatasetError
from pipeline.evaluation.mask_quality import decode_mask
from pipeline.evaluation.mask_refinement import RefinedMask
from pipeline.evaluation.problems import Problems, raise_all
from pipeline.refine.photo_finder import PhotoFinder
from pipeline.refine.photo_masks import ObjectMask, PhotoMasks

Ids = NDArray[np.uint8]

BACKGROUND, VOID = 0, 255


class LabelFolder:
    """A folder of label PNGs, and the folder to write refined ones to."""

    def __init__(self, labels: str, photos: PhotoFinder, *, out_uri: str) -> None:
        """List and check the files.

        Args:
            labels: the folder; a file has the path of its photo, with the ending .png.
            photos: where the photos are.
            out_uri: the folder to write; files of the same names are overwritten.

        Raises:
            DatasetError: all problems of the files and their photos.
        """
        self._root, self._out = storage.absolute(labels), storage.absolute(out_uri)
        if self._root == self._out:
            raise DatasetError(f"--out {out_uri} is --labels, which would be overwritten")
        top = f"{self._root.rstrip('/')}/"
        names = [
            uri.removeprefix(top)
            for uri in storage.list_files(self._root, suffix=".png", recursive=True)
        ]
        if not names:
            raise DatasetError(f"--labels {labels} is not a folder with PNG files")
        problems = Problems(labels)
        self.counts: dict[str, int] = {}
        self._names: list[str] = []
        self.photos: list[PhotoMasks] = []
        for name in names:
            self._read(name, photos, problems)
        raise_all([problems], done="refined")

    def store(self, index: int, refined: Sequence[RefinedMask]) -> None:
        """Write the refined PNG of a photo."""
        name = self._names[index]
        data = storage.read_bytes(storage.join(self._root, name))
        values: Ids = read_values(data, bits=8, max_pixels=None, take_palette=True)
        picture = Image.fromarray(_compose(values, list(encode_instance_masks(values)), refined))
        palette = open_image(data).getpalette()
        if palette:
            picture.putpalette(palette)
        encoded = io.BytesIO()
        picture.save(encoded, format="PNG")
        storage.write_bytes_atomic(storage.join(self._out, name), encoded.getvalue())

    def write(self, model_uri: str) -> None:
        """Do nothing: each PNG is written with its photo."""

    def _read(self, name: str, photos: PhotoFinder, problems: Problems) -> None:
        try:
            values: Ids = read_values(
                storage.read_bytes(storage.join(self._root, name)),
                bits=8,
                max_pixels=None,
                take_palette=True,
            )
        except LabelError as error:
            problems.add("label map is not 8-bit", f"{name}: {error}")
            return
        photo = photos.find_by_stem(str(PurePosixPath(name).with_suffix("")), problems)
        size_hw = photos.read_size_hw(photo, problems) if photo else None
        if size_hw is None:
            return
        if size_hw != values.shape:
            problems.add(
                "wrong photo size", f"{photo} has {list(size_hw)}, {name} {list(values.shape)}"
            )
            return
        self._names.append(name)
        masks = encode_instance_masks(values)
        self.photos.append(
            PhotoMasks(
                name=photo,
                masks=[
                    ObjectMask(rle={"size": list(size_hw), "counts": mask.encoded})
                    for value, mask in masks.items()
                    if value not in (BACKGROUND, VOID)
                ],
            )
        )


def _compose(values: Ids, ids: Sequence[int], refined: Sequence[RefinedMask]) -> Ids:
    """Draw refined objects into a label map; without any, as for a photo left out, keep it."""
    objects = [each for each in ids if each not in (BACKGROUND, VOID)]
    if not refined:
        return values
    masks = dict(zip(objects, (each.rle for each in refined), strict=True))
    is_void = values == VOID
    result = np.where(is_void, values, np.uint8(BACKGROUND))
    # The smallest last, on top of the others.
    for value in sorted(objects, key=lambda value: -int(mask_api.area(masks[value]))):
        result[decode_mask(masks[value]) & ~is_void] = value
    for value in objects:
        result[decode_mask(masks[value]) & (values == value)] = value
    return result
