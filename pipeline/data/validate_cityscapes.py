"""One frame of Cityscapes with its instances: a row of a shard, or the reasons why not.

instanceIds.png holds label_id * 1000 + number where a pixel belongs to an instance, and the label
id alone where it does not; of a class that has instances, such pixels are a group that nobody told
apart, and become a crowd. Where the image is not there it is drawn from the polygons, as
cityscapesScripts draw it.
"""

import json
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.data.cityscapes_classes import CLASSES, INSTANCE_CLASSES
from pipeline.data.dataset_files import Found
from pipeline.data.label_png import LabelError, read_values
from pipeline.data.problems import Entry, shortened
from pipeline.data.run_lengths import RunLengths, read_numbers
from pipeline.data.validate_image import Examined, Instance, image_size_hw, instance_row
from pipeline.data.validate_label_map import file_problems, label_problem

Ids = NDArray[np.uint16]

_PER_CLASS = 1000
_BY_NAME = {each.name: each for each in CLASSES}
_BY_LABEL_ID = {each.label_id: each for each in CLASSES if each.label_id >= 0}
_INDEX = {each.label_id: index for index, each in enumerate(INSTANCE_CLASSES)}

_MOST_VALUES = 5


def examine_frame(entry: Entry, image: Found, label: Found, *, max_pixels: int) -> Examined:
    """Check a frame and its instances, and make their row.

    Args:
        entry: names both.
        image: the encoded photo, as it was read.
        label: instanceIds.png or polygons.json, as it was read.
        max_pixels: a larger image or label is refused before it is decoded.
    """
    found = Examined(problems=file_problems(entry, image, label, max_pixels=max_pixels))
    if label.data is None:
        return found
    try:
        if entry["label_name"].endswith(".json"):
            ids = draw_ids(label.data, most_pixels=max_pixels)
            found.problems.append(label_problem("label_drawn", "taken instead", entry))
        else:
            ids = read_values(label.data, bits=16, most_pixels=max_pixels).astype(np.uint16)
        instances = _instances(read_numbers(ids))
    except LabelError as error:
        found.problems.append(label_problem(error.kind, str(error), entry))
        return found
    if image.data is not None and all(each.severity == "notice" for each in found.problems):
        height, width = ids.shape
        if image_size_hw(image.data) == (height, width):
            found.row = instance_row(entry, (height, width), image.data, instances)
        else:
            told = f"{width} x {height}, the image has another size"
            found.problems.append(label_problem("label_size", told, entry))
    return found


def draw_ids(polygons: bytes, *, most_pixels: int) -> Ids:
    """Draw the instance ids that a polygon file describes.

    Args:
        polygons: polygons.json.
        most_pixels: a larger frame is refused before it is drawn.

    Returns:
        (H, W).

    Raises:
        LabelError: it is no polygon file.
    """
    height, width, objects = _read_polygons(polygons)
    if height * width > most_pixels:
        raise LabelError("label_size", f"{width} x {height} pixels, the limit is {most_pixels}")
    drawn = Image.new("I", (width, height), 0)
    drawer = ImageDraw.Draw(drawn)
    seen: Counter[str] = Counter()
    for item in objects:
        if item.get("deleted"):
            continue
        value = _value_of(item["label"], seen)
        if value is not None:
            # The later lies over the earlier.
            drawer.polygon([tuple(point) for point in item["polygon"]], fill=value)
    return np.asarray(drawn).astype(np.uint16)


def _value_of(label: str, seen: Counter[str]) -> int | None:
    """Give the value of an object's pixels, and count it; None where it is not drawn."""
    is_group = label not in _BY_NAME and label.endswith("group")
    name = label.removesuffix("group") if is_group else label
    if name not in _BY_NAME:
        raise LabelError("polygon_file", f"{label!r} is no class of Cityscapes")
    each = _BY_NAME[name]
    if each.has_instances and not is_group:
        seen[name] += 1
        if seen[name] > _PER_CLASS:
            raise LabelError("polygon_file", f"it has more than {_PER_CLASS} of {label!r}")
        return each.label_id * _PER_CLASS + seen[name] - 1
    return each.label_id if each.label_id >= 0 else None


def _read_polygons(data: bytes) -> tuple[int, int, list[dict[str, Any]]]:
    """Give height, width and objects of a polygon file, checked."""
    try:
        top = json.loads(data)
    except (ValueError, RecursionError) as error:
        told = f"it is not readable as JSON ({shortened(str(error), 80)})"
        raise LabelError("polygon_file", told) from error
    if not isinstance(top, dict) or not isinstance(top.get("objects"), list):
        raise LabelError("polygon_file", "it holds no list of objects")
    height, width = top.get("imgHeight"), top.get("imgWidth")
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise LabelError("polygon_file", f"imgHeight is {height!r:.40}, imgWidth {width!r:.40}")
    farthest = 2 * max(height, width)
    for number, item in enumerate(top["objects"]):
        if not isinstance(item, dict) or not isinstance(item.get("label"), str):
            raise LabelError("polygon_file", f"object {number} has no label")
        if not _is_polygon(item.get("polygon"), farthest):
            told = f"the polygon of object {number} ({item['label']!r}) is no list of points"
            raise LabelError("polygon_file", told)
    return height, width, top["objects"]


def _is_polygon(value: object, farthest: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(point, list) and len(point) == 2 for point in value)
        and all(
            isinstance(each, int | float) and -farthest <= each <= farthest
            for point in value
            for each in point
        )
    )


def _instances(masks: dict[int, RunLengths]) -> list[Instance]:
    """Make the instances of the trained classes, and crowds of their groups."""
    strange = [number for number in masks if _class_of(number) is None]
    if strange:
        told = ", ".join(
            f"{each} ({masks[each].area_px} pixels)" for each in strange[:_MOST_VALUES]
        )
        more = f" and {len(strange) - _MOST_VALUES} more" if len(strange) > _MOST_VALUES else ""
        raise LabelError("label_value", f"ids {told}{more}; no class has such")
    return [
        Instance(
            annotation_id=number,
            category_index=_INDEX[label_id],
            is_crowd=number < _PER_CLASS,
            area_px=float(mask.area_px),
            box_xyxy=np.array(mask.extent_xyxy, dtype=np.float32),
            mask=mask,
        )
        for number, mask in masks.items()
        if (label_id := _class_of(number)) in _INDEX
    ]


def _class_of(number: int) -> int | None:
    """Give the label id of an instance id; None where there is no such class."""
    label_id = number if number < _PER_CLASS else number // _PER_CLASS
    each = _BY_LABEL_ID.get(label_id)
    if each is None or (number >= _PER_CLASS and not each.has_instances):
        return None
    return label_id
