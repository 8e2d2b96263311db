"""Validate one image with a label map, and make its row of a semantic shard."""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset_files import FileContent
from pipeline.data.label_png import LabelError, read_header, read_values
from pipeline.data.photo import read_size_hw
from pipeline.data.problems import Entry, Problem, make_problem
from pipeline.data.schema import PLANES
from pipeline.data.semantic_fields import VOID, Plane, encode_plane, find_nearest_classes
from pipeline.data.source_index import UNKNOWN_VALUE, LabelRules
from pipeline.data.validate_image import ValidatedImage, check_image_file

_EXAMPLE_VALUES = 5


def validate_label_map(
    entry: Entry,
    image: FileContent,
    label: FileContent,
    rules: LabelRules,
    *,
    max_pixels: int,
    take_palette: bool = False,
) -> ValidatedImage:
    """Validate an image and its label map, and make their row.

    Args:
        entry: names both.
        image: the encoded image.
        label: the encoded label map.
        rules: the meaning of its values.
        max_pixels: a larger image or label is refused before it is decoded.
        take_palette: accept a label with a palette and take its indices.
    """
    result = ValidatedImage(problems=check_pair(entry, image, label, max_pixels=max_pixels))
    if label.data is None:
        return result
    try:
        values = read_values(label.data, bits=8, max_pixels=max_pixels, take_palette=take_palette)
    except LabelError as error:
        result.problems.append(make_label_problem(error.kind, str(error), entry))
        return result
    counts = np.bincount(values.ravel(), minlength=256)
    result.problems += _check_values(counts, rules, entry)
    if image.data is not None and all(each.severity == "notice" for each in result.problems):
        result.row = _make_row(entry, image.data, values, counts, rules)
        if read_header(label.data).has_palette:
            fixed = make_label_problem("label_palette", "its indices are taken as values", entry)
            result.problems.append(replace(fixed, action="fixed"))
    return result


def make_label_problem(kind: str, reason: str, entry: Entry) -> Problem:
    """Make a problem of an image's label, with the label's name in the reason."""
    return make_problem(kind, f"{entry['label_name'].rsplit('/', 1)[-1]}: {reason}", entry)


def check_pair(
    entry: Entry, image: FileContent, label: FileContent, *, max_pixels: int
) -> list[Problem]:
    """List the problems of an image and its label file, before the label is decoded."""
    problems = [
        make_problem(kind, reason, entry)
        for kind, reason in check_image_file(image, None, max_pixels=max_pixels)
    ]
    image_is_valid = all(each.severity == "notice" for each in problems)
    if label.data is None:
        kind = "label_unreadable" if label.error else "label_missing"
        problems.append(make_label_problem(kind, label.error or "no such file", entry))
    elif image.data is not None and image_is_valid:
        problems += _check_size(read_size_hw(image.data), label.data, entry)
    return problems


def format_values(pixels: dict[int, int]) -> str:
    """Format label values and their numbers of pixels, the first few only."""
    shown = [f"{value} ({count} pixels)" for value, count in pixels.items()][:_EXAMPLE_VALUES]
    more = len(pixels) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _check_size(size_hw: tuple[int, int], label: bytes, entry: Entry) -> list[Problem]:
    try:
        label_size_hw = read_header(label).size_hw
    except LabelError:
        # Polygons, or not a PNG: reported when the label is decoded.
        return []
    if label_size_hw == size_hw:
        return []
    shown = [f"{width} x {height}" for height, width in (label_size_hw, size_hw)]
    return [make_label_problem("label_size", f"{shown[0]}, the image is {shown[1]}", entry)]


def _check_values(counts: NDArray[np.int64], rules: LabelRules, entry: Entry) -> list[Problem]:
    """Report values that are not in the table, and a label without any class."""
    meanings = np.array(rules.index_of_value)
    unknown = np.flatnonzero((counts > 0) & (meanings == UNKNOWN_VALUE))
    if len(unknown):
        values = format_values({int(value): int(counts[value]) for value in unknown})
        known = np.flatnonzero(meanings < UNKNOWN_VALUE)
        reason = f"values {values}; classes have {known.min()} to {known.max()}"
        return [make_label_problem("label_value", reason, entry)]
    if not counts[meanings != VOID].any():
        return [make_label_problem("label_void", f"all of {counts.sum()} pixels", entry)]
    return []


def _make_row(
    entry: Entry,
    image: bytes,
    values: Plane,
    counts: NDArray[np.int64],
    rules: LabelRules,
) -> dict[str, object]:
    index_of_value = np.array(rules.index_of_value, dtype=np.uint8)
    label = np.asarray(cv2.LUT(values, index_of_value), dtype=np.uint8)
    class_px = np.bincount(index_of_value, weights=counts, minlength=VOID + 1)[:VOID].astype(int)
    classes = np.flatnonzero(class_px)
    planes = (label, *find_nearest_classes(label))
    encoded = {name: encode_plane(plane) for name, plane in zip(PLANES, planes, strict=True)}
    return {
        "image_id": entry["id"],
        "file_name": entry["file_name"],
        "height": label.shape[0],
        "width": label.shape[1],
        "image": image,
        "category_index": classes.tolist(),
        "class_px": class_px[classes].tolist(),
        **encoded,
    }
