"""Objects that a model found in a photo, with masks as small squares of probabilities.

Test-time augmentation merges objects in this form; it is pasted into the photo at the end. Plain
arrays, so that a model without torch can give it too.

n objects, M side of a mask, w, h sides of a strip
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import Category
from pipeline.evaluation.encode_strips import MaskStrip, encode_strips

Floats = NDArray[np.float32]

_THRESHOLD = 0.5
_STRIP_PIXELS = 2**20
"""Bounds the memory of a mask that is pasted."""


class Objects(NamedTuple):
    """The objects of one photo, best first."""

    boxes_xyxy: Floats
    """(n, 4), pixels of the photo."""
    scores: Floats
    """(n,)."""
    category_index: NDArray[np.int64]
    """(n,)."""
    mask_probs: Floats
    """(n, M, M), 0 to 1, over the boxes."""


def select_objects(objects: Objects, chosen: NDArray[Any]) -> Objects:
    """Select objects by index or by a mask."""
    return Objects(*(each[chosen] for each in objects))


def scale_objects(objects: Objects, *, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Objects:
    """Scale boxes to another size of the image, clip them to it, and drop those without area."""
    to_whwh = np.array([to_hw[1], to_hw[0]] * 2, np.float32)
    factor = to_whwh / np.array([from_hw[1], from_hw[0]] * 2, np.float32)
    boxes = np.minimum(np.maximum(objects.boxes_xyxy * factor, 0), to_whwh)
    has_area: NDArray[np.bool_] = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    return select_objects(objects._replace(boxes_xyxy=boxes), has_area)


def to_rows(
    objects: Objects, categories: Sequence[Category], *, size_hw: tuple[int, int]
) -> list[dict[str, Any]]:
    """Paste the masks into the photo; the rows are those of `Predictor.predict_photo`."""
    return [
        {
            "category_name": categories[index].name,
            "category_index": index,
            "score": score,
            "box_xyxy": box.tolist(),
            "rle": {"size": list(size_hw), "counts": encode_mask(probs, box, size_hw).decode()},
        }
        for box, score, index, probs in zip(
            objects.boxes_xyxy,
            objects.scores.tolist(),
            objects.category_index.tolist(),
            objects.mask_probs,
            strict=True,
        )
    ]


def interpolation_weights(at: NDArray[Any], cells: int) -> NDArray[np.float64]:
    """Return how much each cell counts at positions in cells, bilinear, (positions, cells)."""
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0)
    return weights


def encode_mask(probs: Floats, box: Floats, size_hw: tuple[int, int]) -> bytes:
    """Paste a mask (M, M) into an image, and encode it as compressed RLE."""
    return encode_strips(_paste_strips(probs, box, size_hw), size_hw=size_hw)


def _paste_strips(probs: Floats, box: Floats, size_hw: tuple[int, int]) -> Iterator[MaskStrip]:
    """Sample a mask at the centers of pixels, as bsm/instance/paste.py does."""
    height, width = size_hw
    x0, y0, x1, y1 = (float(each) for each in box)
    left, right = (min(max(round(x), 0), width) for x in (x0 - 1, x1 + 1))
    top, bottom = (min(max(round(y), 0), height) for y in (y0 - 1, y1 + 1))
    if left >= right or top >= bottom:
        return
    across = _weigh_pixels(left, right, (x0, x1), len(probs)) @ probs.T.astype(np.float64)
    down = _weigh_pixels(top, bottom, (y0, y1), len(probs)).T
    step = max(_STRIP_PIXELS // (bottom - top), 1)
    for start in range(0, right - left, step):
        values = across[start : start + step] @ down
        yield MaskStrip(left + start, top, values >= _THRESHOLD)


def _weigh_pixels(
    start: int, stop: int, sides: tuple[float, float], cells: int
) -> NDArray[np.float64]:
    extent = max(sides[1] - sides[0], 1e-6)
    at = (np.arange(start, stop) + 0.5 - sides[0]) / extent * cells - 0.5
    return interpolation_weights(at, cells)
