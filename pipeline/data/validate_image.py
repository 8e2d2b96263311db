"""Validate one image entry with its annotations and file, and make its row of a shard.

Pure functions of their inputs. Problems are returned, not raised, so that one pass over a data set
finds them all.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.annotation_rules import is_area_off, is_crowd
from pipeline.data.dataset_files import FileContent
from pipeline.data.instance_fields import compute_squeeze_field
from pipeline.data.photo import MAX_PIXELS, check_image
from pipeline.data.problems import Entry, Problem, make_problem
from pipeline.data.run_lengths import (
    MaskError,
    RunLengths,
    measure_overhang_px,
    read_segmentation,
)
from pipeline.data.schema import FEDERATED, FIELD_SIDE

MAX_BOX_OFFSET_PX = 3.0
"""Tolerated distance between a side of a box and the mask's; hand-drawn COCO boxes need it."""

MIN_BOX_IOU = 0.5
"""A box beyond that distance and below this IoU with the mask's box belongs to another object."""

ROUNDING_PX = 1.0
"""Tolerated reach of a box outside the image; COCO's own boxes do, by rounding."""

_Reasons = list[tuple[str, str, str]]
"""Kind, reason and action of each problem."""


@dataclass(slots=True)
class ValidatedImage:
    """The row of an image, if it has one, and every problem of the image and its annotations."""

    row: dict[str, Any] | None = None
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """An instance as stored in a row."""

    annotation_id: int
    category_index: int
    is_crowd: bool
    area_px: float
    box_xyxy: NDArray[np.float32]
    mask: RunLengths


def validate_image(
    image: Entry,
    file: FileContent,
    category_index: dict[int, int],
    *,
    max_pixels: int = MAX_PIXELS,
    clip_boxes: bool = False,
    federated: bool = False,
) -> ValidatedImage:
    """Validate an image and its annotations, and make a row of the valid ones.

    Args:
        image: the entry, with its annotations under "annotations".
        file: the encoded file.
        category_index: by category_id.
        max_pixels: a larger image is refused before it is decoded.
        clip_boxes: clip boxes to the image instead of dropping them.
        federated: the entry has LVIS's lists of categories; add them to the row.

    Returns:
        The row, unless the image itself is bad, and all problems. Annotations with a `bad` problem
        that was not fixed are not in the row.
    """
    size_hw = (image["height"], image["width"])
    if size_hw[0] * size_hw[1] > max_pixels:
        # Its masks are not decoded either.
        listed = f"listed as {size_hw[1]} x {size_hw[0]} pixels, the limit is {max_pixels}"
        return ValidatedImage(problems=[make_problem("image_too_large", listed, image)])
    of_file = [
        make_problem(kind, reason, image)
        for kind, reason in check_image_file(file, size_hw, max_pixels=max_pixels)
    ]
    kept, of_annotations = _validate_annotations(image, category_index, clip_boxes=clip_boxes)
    result = ValidatedImage(problems=of_file + of_annotations)
    if file.data is not None and not any(each.severity == "bad" for each in of_file):
        result.row = make_instance_row(image, size_hw, file.data, kept)
        if federated:
            result.row |= {
                column: [category_index[each] for each in image[key]]
                for key, column in FEDERATED.items()
            }
    return result


def check_image_file(
    file: FileContent, size_hw: tuple[int, int] | None, *, max_pixels: int
) -> list[tuple[str, str]]:
    """Check that an image file exists and that check_image finds no problem."""
    if file.data is None:
        kind = "image_unreadable" if file.error else "image_missing"
        return [(kind, file.error or "no such file")]
    return check_image(file.data, size_hw, max_pixels=max_pixels)


def make_instance_row(
    image: Entry, size_hw: tuple[int, int], data: bytes, instances: list[Instance]
) -> dict[str, Any]:
    """Make the row of an image and its instances."""
    return {
        "image_id": image["id"],
        "file_name": image["file_name"],
        "height": size_hw[0],
        "width": size_hw[1],
        "image": data,
        "annotation_id": [each.annotation_id for each in instances],
        "boxes_xyxy": [each.box_xyxy for each in instances],
        "category_index": [each.category_index for each in instances],
        "is_crowd": [each.is_crowd for each in instances],
        "area_px": [each.area_px for each in instances],
        "rle": [each.mask.encoded for each in instances],
        "squeeze_field": [
            compute_squeeze_field(each.mask, each.box_xyxy, side=FIELD_SIDE).tobytes()
            for each in instances
        ],
    }


def _validate_annotations(
    image: Entry, category_index: dict[int, int], *, clip_boxes: bool
) -> tuple[list[Instance], list[Problem]]:
    """Return the valid instances of an image, and all problems of its annotations."""
    kept, problems = [], []
    first: dict[tuple[int, bytes], int] = {}  # annotation by category and mask
    size_hw = (image["height"], image["width"])
    for entry in image["annotations"]:
        reasons: _Reasons = []
        box = _read_box(entry, size_hw, reasons, clip=clip_boxes)
        mask = _read_mask(entry, size_hw, reasons)
        if box is not None and mask is not None:
            _compare_box(box, mask, reasons)
            _note_defaults(entry, mask, reasons)
        mine = [
            replace(make_problem(kind, reason, entry, image=image), action=action)
            for kind, reason, action in reasons
        ]
        problems += mine
        is_valid = not any(each.severity == "bad" and each.action != "fixed" for each in mine)
        if box is not None and mask is not None and is_valid:
            twin = first.setdefault((entry["category_id"], mask.encoded), entry["id"])
            if twin != entry["id"]:
                reason = f"equals annotation {twin}"
                problems.append(make_problem("object_twice", reason, entry, image=image))
            kept.append(
                Instance(
                    annotation_id=entry["id"],
                    category_index=category_index[entry["category_id"]],
                    is_crowd=is_crowd(entry),
                    area_px=float(entry.get("area", mask.area_px)),
                    box_xyxy=box.astype(np.float32),
                    mask=mask,
                )
            )
    return kept, problems


def _read_box(
    entry: Entry, size_hw: tuple[int, int], reasons: _Reasons, *, clip: bool
) -> NDArray[np.float64] | None:
    x, y, w, h = entry["bbox"]
    # Rows store float32, where a number may overflow and a box become empty.
    area = entry.get("area", 0)
    limit = float(np.finfo(np.float32).max) / 2  # x + w must fit too
    if not all(-limit <= each <= limit for each in (x, y, w, h, area)):
        reasons.append(("not_finite", f"bbox {entry['bbox']}, area {area}", "found"))
        return None
    height, width = size_hw
    box = np.array([x, y, x + w, y + h], dtype=np.float64)
    if _is_empty(box):
        reasons.append(("box_empty", f"bbox {entry['bbox']}", "found"))
        return None
    outside = max(-x, -y, x + w - width, y + h - height)
    if outside > ROUNDING_PX:
        reason = f"bbox {entry['bbox']} in an image of {width} x {height}"
        inside = np.clip(box, 0, [width, height, width, height])
        if not clip or _is_empty(inside):
            reasons.append(("box_outside", reason, "found"))
            return None
        reasons.append(("box_outside", f"{reason}, cut to {inside.tolist()}", "fixed"))
        return inside
    if outside > 0:
        reasons.append(("box_rounding", f"by {outside:.3g} px", "found"))
    return box


def _is_empty(box_xyxy: NDArray[np.float64]) -> bool:
    stored = box_xyxy.astype(np.float32)
    return bool((stored[2:] <= stored[:2]).any())


def _read_mask(entry: Entry, size_hw: tuple[int, int], reasons: _Reasons) -> RunLengths | None:
    try:
        mask = read_segmentation(entry["segmentation"], size_hw)
    except MaskError as error:
        reasons.append((error.kind, str(error), "found"))
        return None
    outside = measure_overhang_px(entry["segmentation"], size_hw)
    if outside > ROUNDING_PX:
        reasons.append(("polygon_outside", f"by {outside:.3g} px", "found"))
    return mask


def _note_defaults(entry: Entry, mask: RunLengths, reasons: _Reasons) -> None:
    """Report the values that an annotation lacks, and an area that is not its mask's."""
    if "iscrowd" not in entry:
        reasons.append(("iscrowd_missing", "no iscrowd", "found"))
    if "area" not in entry:
        reasons.append(("area_missing", f"its mask has {mask.area_px} pixels", "found"))
    elif not is_crowd(entry) and is_area_off(entry["area"], mask_px=mask.area_px):
        reason = f"area {entry['area']}, its mask has {mask.area_px} pixels"
        reasons.append(("area_off", reason, "found"))


def _compare_box(box: NDArray[np.float64], mask: RunLengths, reasons: _Reasons) -> None:
    """Compare an annotation's box with the box of its mask."""
    own = np.array(mask.box_xyxy, dtype=np.float64)
    offset = float(np.abs(box - own).max())
    if offset <= MAX_BOX_OFFSET_PX:
        return
    common = np.clip(np.minimum(box[2:], own[2:]) - np.maximum(box[:2], own[:2]), 0, None).prod()
    iou = common / ((box[2:] - box[:2]).prod() + (own[2:] - own[:2]).prod() - common)
    kind = "box_disagrees" if iou < MIN_BOX_IOU else "box_off"
    reasons.append((kind, f"off by {offset:.1f} px, IoU {iou:.2f}", "found"))
