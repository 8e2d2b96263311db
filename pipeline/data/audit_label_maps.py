"""Audit the planes of a semantic row: readable, of the image's size, and equal to the label's."""

from typing import Any

import numpy as np

from pipeline.data.schema import PLANES
from pipeline.data.semantic_fields import VOID, decode_plane, find_nearest_classes


def audit_planes(row: dict[str, Any], *, num_classes: int) -> list[str]:
    """List the problems of a row's label, fields and lists.

    Args:
        row: of a semantic shard.
        num_classes: of the data set.
    """
    size_hw = (row["height"], row["width"])
    planes, problems = {}, []
    for name in PLANES:
        plane = decode_plane(row[name])
        if plane is None:
            problems.append(f"{name} cannot be read")
        elif plane.shape != size_hw:
            problems.append(f"{name} has another size than the image")
        else:
            planes[name] = plane
    if problems:
        return problems
    label = planes["label"]
    counts = np.bincount(label.ravel(), minlength=VOID + 1)[:VOID]
    if counts[num_classes:].any():
        return [f"label has values above category_index {num_classes - 1}"]
    classes = np.flatnonzero(counts)
    if [row["category_index"], row["class_px"]] != [classes.tolist(), counts[classes].tolist()]:
        problems.append("category_index and class_px do not match its label")
    fields = zip(PLANES[1:], find_nearest_classes(label), strict=True)
    return problems + [
        f"{name} does not match its label"
        for name, plane in fields
        if not np.array_equal(planes[name], plane)
    ]
