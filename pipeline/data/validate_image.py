"""One image entry with its annotations and its file: a row of a shard, or the reasons why not.

Pure functions of their inputs. What is found wrong is returned, never raised, so that one pass
over a data set finds everything.
"""

import io
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.dataset_files import Found
from pipeline.data.instance_fields import squeeze_field
from pipeline.data.problems import Entry, Problem, problem_of
from pipeline.data.run_lengths import (
    MaskError,
    RunLengths,
    polygons_reach_px,
    read_segmentation,
)
from pipeline.data.schema import FEDERATED, FIELD_SIDE

MAX_IMAGE_BYTES = 64_000_000
"""A file may not be longer: 32 of them, a row group, fit into one Arrow array of 2 GiB."""

MAX_PIXELS = 89_478_485
"""Default pixel limit, Pillow's own: 24 bit pixels that fill a quarter of a GiB."""

FARTHEST_OFF_PX = 3.0
"""A side of a box may lie so far from the mask's; hand-drawn COCO boxes do."""

LEAST_IOU = 0.5
"""A box that is farther off and overlaps the mask's own less than this is another object's."""

ROUNDING_PX = 1.0
"""A box may reach so far out of the image; COCO's own do, by rounding."""

_TURN_TAG = 0x0112
"""EXIF orientation."""

_Found = list[tuple[str, str, str]]
"""Kind, reason and action."""


@dataclass(slots=True)
class Examined:
    """What became of an image: its row, where there is one, and every problem found."""

    row: dict[str, Any] | None = None
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """An instance as a row holds it."""

    annotation_id: int
    category_index: int
    is_crowd: bool
    area_px: float
    box_xyxy: NDArray[np.float32]
    mask: RunLengths


def examine(
    image: Entry,
    file: Found,
    category_index: dict[int, int],
    *,
    max_pixels: int = MAX_PIXELS,
    clip_boxes: bool = False,
    federated: bool = False,
) -> Examined:
    """Check an image and its annotations, and make its row of what is sound.

    Args:
        image: the entry, with its annotations under "annotations".
        file: the encoded file, as it was read.
        category_index: by category_id.
        max_pixels: a larger image is refused before it is decoded.
        clip_boxes: cut boxes at the image's border instead of dropping them.
        federated: the entry says which categories were looked for, and so shall the row.

    Returns:
        The row, unless the image itself is bad, and all problems; annotations with a `bad` problem
        that was not fixed are not in the row.
    """
    size_hw = (image["height"], image["width"])
    told = check_file(file, size_hw, max_pixels=max_pixels)
    if size_hw[0] * size_hw[1] > max_pixels:
        # Masks of that size are not painted either.
        listed = f"listed as {size_hw[1]} x {size_hw[0]} pixels, the limit is {max_pixels}"
        return Examined(problems=[problem_of("image_too_large", listed, image)])
    of_file = [problem_of(kind, reason, image) for kind, reason in told]
    kept, of_annotations = _annotations(image, category_index, clip_boxes=clip_boxes)
    found = Examined(problems=of_file + of_annotations)
    if file.data is not None and not any(each.severity == "bad" for each in of_file):
        found.row = instance_row(image, size_hw, file.data, kept)
        if federated:
            found.row |= {
                column: [category_index[each] for each in image[key]]
                for key, column in FEDERATED.items()
            }
    return found


def check_file(
    file: Found, size_hw: tuple[int, int] | None, *, max_pixels: int
) -> list[tuple[str, str]]:
    """Check an image file as it was read; else like check_image."""
    if file.data is None:
        kind = "image_unreadable" if file.fault else "image_missing"
        return [(kind, file.fault or "no such file")]
    return check_image(file.data, size_hw, max_pixels=max_pixels)


def check_image(
    data: bytes, size_hw: tuple[int, int] | None, *, max_pixels: int
) -> list[tuple[str, str]]:
    """Check an encoded image: its header first, then every byte of it.

    Args:
        data: the file.
        size_hw: what it must be; None where nothing is listed.
        max_pixels: a larger one is refused before it is decoded.

    Returns:
        Kind and reason of each problem.
    """
    if not data:
        return [("image_unreadable", "the file is empty")]
    if len(data) > MAX_IMAGE_BYTES:
        return [("image_too_large", f"more than {MAX_IMAGE_BYTES} bytes")]
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is refused below, and refuses by itself at twice its limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        return [("image_too_large", str(error).split(",")[0])]
    except Exception as error:  # decoders raise what they like on broken files
        return [("image_format", f"it starts with {data[:8]!r} ({type(error).__name__})")]
    with opened:
        return _check_opened(opened, size_hw, max_pixels)


def image_size_hw(data: bytes) -> tuple[int, int]:
    """Give the size of an image that check_image has let in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
    return height, width


def _check_opened(
    opened: Image.Image, size_hw: tuple[int, int] | None, max_pixels: int
) -> list[tuple[str, str]]:
    width, height = opened.size
    if opened.format not in ("JPEG", "PNG"):
        return [("image_format", f"it is {opened.format}")]
    if width * height > max_pixels:
        return [("image_too_large", f"{width} x {height} pixels, the limit is {max_pixels}")]
    found = []
    if size_hw is not None and (height, width) != size_hw:
        listed = f"{size_hw[1]} x {size_hw[0]}"
        found.append(("image_size", f"{width} x {height} in the file, {listed} in the annotations"))
    try:
        turn = opened.getexif().get(_TURN_TAG, 1)
        # A JPEG is unpacked at an eighth of its size: every byte is read, few pixels are made.
        opened.draft(opened.mode, (1, 1))
        opened.load()
    except Exception as error:  # decoders raise what they like on broken files
        return [*found, ("image_unreadable", str(error)[:160] or type(error).__name__)]
    if turn not in (0, 1):
        found.append(("image_turned", f"EXIF orientation {turn}"))
    return found


def instance_row(
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
            squeeze_field(each.mask, each.box_xyxy, side=FIELD_SIDE).tobytes() for each in instances
        ],
    }


def _annotations(
    image: Entry, category_index: dict[int, int], *, clip_boxes: bool
) -> tuple[list[Instance], list[Problem]]:
    """Give the sound instances of an image, and what is wrong with the others."""
    kept, problems = [], []
    size_hw = (image["height"], image["width"])
    for entry in image["annotations"]:
        found: _Found = []
        box = _box(entry, size_hw, found, clip=clip_boxes)
        mask = _mask(entry, size_hw, found)
        if box is not None and mask is not None:
            _compare(box, mask, found)
        made = [
            replace(problem_of(kind, reason, entry, image=image), action=action)
            for kind, reason, action in found
        ]
        problems += made
        sound = not any(each.severity == "bad" and each.action != "fixed" for each in made)
        if box is not None and mask is not None and sound:
            kept.append(
                Instance(
                    annotation_id=entry["id"],
                    category_index=category_index[entry["category_id"]],
                    is_crowd=bool(entry["iscrowd"]),
                    area_px=float(entry["area"]),
                    box_xyxy=box.astype(np.float32),
                    mask=mask,
                )
            )
    return kept, problems


def _box(
    entry: Entry, size_hw: tuple[int, int], found: _Found, *, clip: bool
) -> NDArray[np.float64] | None:
    x, y, w, h = entry["bbox"]
    # What is stored is float32: a number may overflow there, and a box become empty.
    if not np.isfinite(np.array([x, y, w, h, entry["area"]], dtype=np.float32)).all():
        found.append(("not_finite", f"bbox {entry['bbox']}, area {entry['area']}", "found"))
        return None
    height, width = size_hw
    box = np.array([x, y, x + w, y + h], dtype=np.float64)
    if _is_empty(box):
        found.append(("box_empty", f"bbox {entry['bbox']}", "found"))
        return None
    outside = max(-x, -y, x + w - width, y + h - height)
    if outside > ROUNDING_PX:
        told = f"bbox {entry['bbox']} in an image of {width} x {height}"
        inside = np.clip(box, 0, [width, height, width, height])
        if not clip or _is_empty(inside):
            found.append(("box_outside", told, "found"))
            return None
        found.append(("box_outside", f"{told}, cut to {inside.tolist()}", "fixed"))
        return inside
    if outside > 0:
        found.append(("box_rounding", f"by {outside:.3g} px", "found"))
    return box


def _is_empty(box_xyxy: NDArray[np.float64]) -> bool:
    stored = box_xyxy.astype(np.float32)
    return bool((stored[2:] <= stored[:2]).any())


def _mask(entry: Entry, size_hw: tuple[int, int], found: _Found) -> RunLengths | None:
    try:
        mask = read_segmentation(entry["segmentation"], size_hw)
    except MaskError as error:
        found.append((error.kind, str(error), "found"))
        return None
    reach = polygons_reach_px(entry["segmentation"], size_hw)
    if reach > ROUNDING_PX:
        found.append(("polygon_outside", f"by {reach:.3g} px", "found"))
    return mask


def _compare(box: NDArray[np.float64], mask: RunLengths, found: _Found) -> None:
    """Compare a box with the mask's own."""
    own = np.array(mask.extent_xyxy, dtype=np.float64)
    off = float(np.abs(box - own).max())
    if off <= FARTHEST_OFF_PX:
        return
    common = np.clip(np.minimum(box[2:], own[2:]) - np.maximum(box[:2], own[:2]), 0, None).prod()
    iou = common / ((box[2:] - box[:2]).prod() + (own[2:] - own[:2]).prod() - common)
    kind = "box_disagrees" if iou < LEAST_IOU else "box_off"
    found.append((kind, f"off by {off:.1f} px, IoU {iou:.2f}", "found"))
