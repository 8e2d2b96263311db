"""Samples with drawn masks, and masks on whole planes to compare with."""

from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from pipeline.data.instance_fields import compute_squeeze_field
from pipeline.data.objects import SampleObjects, read_objects
from pipeline.data.run_lengths import RunLengths, decode_counts
from pipeline.data.schema import FIELD_SIDE, INSTANCE_SCHEMA


class Drawn(NamedTuple):
    """An image's masks, (h, w) 0/1, none of them empty."""

    masks: tuple[np.ndarray, ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.masks[0].shape


def _blobs(size_hw):
    """Masks of a few coarse blocks, so that objects have insides, outlines, holes and parts."""
    coarse = (-(-size_hw[0] // 4), -(-size_hw[1] // 4))
    block = arrays(np.uint8, coarse, elements=st.sampled_from([0, 0, 1]))
    return block.map(
        lambda grid: cv2.resize(grid, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    ).filter(np.any)


drawn = st.tuples(st.integers(8, 28), st.integers(8, 28)).flatmap(
    lambda size_hw: st.lists(_blobs(size_hw), min_size=1, max_size=4).map(
        lambda masks: Drawn(tuple(masks))
    )
)


def read_drawn(images: list[Drawn]) -> SampleObjects:
    """Read objects as ingest stores them; their categories count over all images."""
    rows, category = [], 0
    for index, image in enumerate(images):
        counts = [coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in image.masks]
        masks = [RunLengths(size_hw=image.size_hw, encoded=c, runs=decode_counts(c, image.size_hw))
                 for c in counts]  # fmt: skip
        boxes = [np.array(mask.box_xyxy, np.float32) for mask in masks]
        rows.append(
            {
                "image_id": index,
                "file_name": "",
                "height": image.size_hw[0],
                "width": image.size_hw[1],
                "image": b"",
                "annotation_id": list(range(len(masks))),
                "boxes_xyxy": boxes,
                "category_index": list(range(category, category + len(masks))),
                "is_crowd": [False] * len(masks),
                "area_px": [float(mask.area_px) for mask in masks],
                "rle": counts,
                "squeeze_field": [
                    compute_squeeze_field(mask, box, side=FIELD_SIDE).tobytes()
                    for mask, box in zip(masks, boxes, strict=True)
                ],
            }
        )
        category += len(masks)
    return read_objects(pa.Table.from_pylist(rows, schema=INSTANCE_SCHEMA), with_patches=True)


def find_box(mask: np.ndarray) -> list[int]:
    """Return the smallest box around a mask on a whole plane."""
    y, x = np.nonzero(mask)
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


def resize_plane(mask: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize a mask on its whole plane: bilinear, edges repeated, at least one half."""
    if mask.shape == size_hw:
        return mask

    def weights(size, new_size):
        x = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
        left = np.floor(x).astype(int)
        return left, np.minimum(left + 1, size - 1), x - left

    top, bottom, ty = weights(mask.shape[0], size_hw[0])
    left, right, tx = weights(mask.shape[1], size_hw[1])
    upper = (1 - tx) * mask[top][:, left] + tx * mask[top][:, right]
    lower = (1 - tx) * mask[bottom][:, left] + tx * mask[bottom][:, right]
    return ((1 - ty)[:, None] * upper + ty[:, None] * lower >= 0.5).astype(np.uint8)
