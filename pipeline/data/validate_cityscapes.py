"""Validate one frame of Cityscapes with its instances, and make its row of a shard.

instanceIds.png holds label_id * 1000 + number for the pixels of an instance, and the label id alone
for all others. For a class with instances, the latter are a group without separate instances and
become a crowd. If the PNG is missing, it is drawn from the polygons, as cityscapesScripts do.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.data.cityscapes_classes import CLASSES, INSTANCE_CLASSES
from pipeline.data.dataset_files import FileContent
from pipeline.data.label_png import LabelError, read_values
from pipeline.data.photo import read_size_hw
from pipeline.data.problems import Entry, shorten
from pipeline.data.run_lengths import RunLengths, encode_instance_masks
from pipeline.data.text_files import parse_json
from pipeline.data.validate_image import Instance, ValidatedImage, make_instance_row
from pipeline.data.validate_label_map import check_pair, format_values, make_label_problem

Ids = NDArray[np.uint16]

_PER_CLASS = 1000
_BY_NAME = {each.name: each for each in CLASSES}
_BY_LABEL_ID = {each.label_id: each for each in CLASSES if each.label_id >= 0}
_INDEX = {each.label_id: index for index, each in enumerate(INSTANCE_CLASSES)}


def validate_frame(
    entry: Entry, image: FileContent, label: FileContent, *, max_pixels: int
) -> ValidatedImage:
    """Validate a frame and its instances, and make their row.

    Args:
        entry: names both files.
        image: the encoded photo.
        label: instanceIds.png or polygons.json.
        max_pixels: a larger image or label is refused before it is decoded.
    """
    result = ValidatedImage(problems=check_pair(entry, image, label, max_pixels=max_pixels))
    if label.data is None:
        return result
    try:
        if entry["label_name"].endswith(".json"):
            ids = draw_ids(label.data, max_pixels=max_pixels)
            result.problems.append(make_label_problem("label_drawn", "taken instead", entry))
        else:
            ids = read_values(label.data, bits=16, max_pixels=max_pixels)
        instances = _make_instances(encode_instance_masks(ids))
    except LabelError as error:
        result.problems.append(make_label_problem(error.kind, str(error), entry))
        return result
    if image.data is not None and all(each.severity == "notice" for each in result.problems):
        height, width = ids.shape
        if read_size_hw(image.data) == (height, width):
            result.row = make_instance_row(entry, (height, width), image.data, instances)
        else:
            reason = f"{width} x {height}, the image has another size"
            result.problems.append(make_label_problem("label_size", reason, entry))
    return result


def draw_ids(polygons: bytes, *, max_pixels: int) -> Ids:
    """Draw the instance ids of a polygon file.

    Args:
        polygons: polygons.json.
        max_pixels: a larger frame is refused before it is drawn.

    Returns:
        (H, W).

    Raises:
        LabelError: the file is not a polygon file.
    """
    height, width, objects = _read_polygons(polygons)
    if height * width > max_pixels:
        raise LabelError("label_size", f"{width} x {height} pixels, the limit is {max_pixels}")
    drawn = Image.new("I", (width, height), 0)
    drawer = ImageDraw.Draw(drawn)
    seen: Counter[str] = Counter()
    for item in objects:
        if item.get("deleted"):
            continue
        value = _next_value(item["label"], seen)
        if value is not None:
            # Later polygons cover earlier ones.
            drawer.polygon([tuple(point) for point in item["polygon"]], fill=value)
    return np.asarray(drawn).astype(np.uint16)


def _next_value(label: str, seen: Counter[str]) -> int | None:
    """Return the pixel value of an object and count it; None if it is not drawn."""
    is_group = label not in _BY_NAME and label.endswith("group")
    name = label.removesuffix("group") if is_group else label
    if name not in _BY_NAME:
        raise LabelError("polygon_file", f"{label!r} is not a class of Cityscapes")
    each = _BY_NAME[name]
    if each.has_instances and not is_group:
        seen[name] += 1
        if seen[name] > _PER_CLASS:
            raise LabelError("polygon_file", f"it has more than {_PER_CLASS} of {label!r}")
        return each.label_id * _PER_CLASS + seen[name] - 1
    return each.label_id if each.label_id >= 0 else None


def _read_polygons(data: bytes) -> tuple[int, int, list[dict[str, Any]]]:
    """Parse and check height, width and objects of a polygon file."""
    try:
        top = parse_json(data)
    except ValueError as error:
        reason = f"it is not readable as JSON ({shorten(str(error), 80)})"
        raise LabelError("polygon_file", reason) from error
    if not isinstance(top, dict) or not isinstance(top.get("objects"), list):
        raise LabelError("polygon_file", "it has no list of objects")
    height, width = top.get("imgHeight"), top.get("imgWidth")
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise LabelError("polygon_file", f"imgHeight is {height!r:.40}, imgWidth {width!r:.40}")
    limit = 2 * max(height, width)
    for number, item in enumerate(top["objects"]):
        if not isinstance(item, dict) or not isinstance(item.get("label"), str):
            raise LabelError("polygon_file", f"object {number} has no label")
        if not _is_polygon(item.get("polygon"), limit):
            reason = f"the polygon of object {number} ({item['label']!r}) is not a list of points"
            raise LabelError("polygon_file", reason)
    return height, width, top["objects"]


def _is_polygon(value: object, limit: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(point, list) and len(point) == 2 for point in value)
        and all(
            isinstance(each, int | float) and -limit <= each <= limit
            for point in value
            for each in point
        )
    )


def _make_instances(masks: dict[int, RunLengths]) -> list[Instance]:
    """Make the instances of the trained classes; groups become crowds."""
    unknown = {number: mask.area_px for number, mask in masks.items() if _class_of(number) is None}
    if unknown:
        raise LabelError("label_value", f"ids {format_values(unknown)}; no class has these ids")
    return [
        Instance(
            annotation_id=number,
            category_index=_INDEX[label_id],
            is_crowd=number < _PER_CLASS,
            area_px=float(mask.area_px),
            box_xyxy=np.array(mask.box_xyxy, dtype=np.float32),
            mask=mask,
        )
        for number, mask in masks.items()
        if (label_id := _class_of(number)) in _INDEX
    ]


def _class_of(number: int) -> int | None:
    """Return the label id of an instance id; None if no such class exists."""
    label_id = number if number < _PER_CLASS else number // _PER_CLASS
    each = _BY_LABEL_ID.get(label_id)
    if each is None or (number >= _PER_CLASS and not each.has_instances):
        return None
    return label_id
