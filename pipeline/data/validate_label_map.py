"""One image with a label map: a row of a semantic shard, or the reasons why not."""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset_files import Found
from pipeline.data.label_png import LabelError, read_header, read_values
from pipeline.data.problems import Entry, Problem, problem_of
from pipeline.data.schema import PLANES
from pipeline.data.semantic_fields import VOID, Plane, encode_plane, nearest_classes
from pipeline.data.source_index import UNKNOWN_VALUE, LabelRules
from pipeline.data.validate_image import Examined, check_file, image_size_hw

_MOST_VALUES = 5


def examine_label(
    entry: Entry,
    image: Found,
    label: Found,
    rules: LabelRules,
    *,
    max_pixels: int,
    take_palette: bool = False,
) -> Examined:
    """Check an image and its label map, and make their row.

    Args:
        entry: names both.
        image: the encoded image, as it was read.
        label: the encoded label, as it was read.
        rules: what its values mean.
        max_pixels: a larger image or label is refused before it is decoded.
        take_palette: of a label with a palette, take the numbers of its colors.
    """
    found = Examined(problems=file_problems(entry, image, label, max_pixels=max_pixels))
    if label.data is None:
        return found
    try:
        values = read_values(
            label.data, bits=8, most_pixels=max_pixels, take_palette=take_palette
        ).astype(np.uint8, copy=False)
    except LabelError as error:
        found.problems.append(label_problem(error.kind, str(error), entry))
        return found
    counts = np.bincount(values.ravel(), minlength=256)
    found.problems += _of_values(counts, rules, entry)
    if image.data is not None and all(each.severity == "notice" for each in found.problems):
        found.row = _row(entry, image.data, values, counts, rules)
        if read_header(label.data).has_palette:
            fixed = label_problem("label_palette", "its numbers are taken as values", entry)
            found.problems.append(replace(fixed, action="fixed"))
    return found


def label_problem(kind: str, reason: str, entry: Entry) -> Problem:
    """Make a problem of an image's label, which tells the label's name too."""
    return problem_of(kind, f"{entry['label_name'].rsplit('/', 1)[-1]}: {reason}", entry)


def file_problems(entry: Entry, image: Found, label: Found, *, max_pixels: int) -> list[Problem]:
    """List what is wrong with the files of a pair, before the label is decoded."""
    told = check_file(image, None, max_pixels=max_pixels)
    problems = [problem_of(kind, reason, entry) for kind, reason in told]
    image_is_sound = all(each.severity == "notice" for each in problems)
    if label.data is None:
        kind = "label_unreadable" if label.fault else "label_missing"
        problems.append(label_problem(kind, label.fault or "no such file", entry))
    elif image.data is not None and image_is_sound:
        problems += _of_sizes(image_size_hw(image.data), label.data, entry)
    return problems


def _of_sizes(size_hw: tuple[int, int], label: bytes, entry: Entry) -> list[Problem]:
    try:
        found = read_header(label).size_hw
    except LabelError:
        # It is no PNG: polygons, or told when it is decoded.
        return []
    if found == size_hw:
        return []
    shown = [f"{width} x {height}" for height, width in (found, size_hw)]
    return [label_problem("label_size", f"{shown[0]}, the image is {shown[1]}", entry)]


def _of_values(counts: NDArray[np.int64], rules: LabelRules, entry: Entry) -> list[Problem]:
    """Tell values that the table lacks, and a label without any class."""
    meanings = np.array(rules.index_of_value)
    strange = np.flatnonzero((counts > 0) & (meanings == UNKNOWN_VALUE))
    if len(strange):
        told = ", ".join(f"{value} ({counts[value]} pixels)" for value in strange[:_MOST_VALUES])
        more = f" and {len(strange) - _MOST_VALUES} more" if len(strange) > _MOST_VALUES else ""
        known = np.flatnonzero(meanings < UNKNOWN_VALUE)
        told = f"values {told}{more}; classes have {known.min()} to {known.max()}"
        return [label_problem("label_value", told, entry)]
    if not counts[meanings != VOID].any():
        return [label_problem("label_void", f"all of {counts.sum()} pixels", entry)]
    return []


def _row(
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
    planes = (label, *nearest_classes(label))
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
