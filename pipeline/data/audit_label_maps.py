"""Check the maps of a semantic row: they can be read, fit together, and follow from the label."""

from typing import Any

import numpy as np

from pipeline.data.schema import PLANES
from pipeline.data.semantic_fields import VOID, decode_plane, nearest_classes


def audit_planes(row: dict[str, Any], *, num_classes: int) -> list[str]:
    """List what is wrong with a row's label, its fields and its lists.

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
        return [f"label has values that are no category_index below {num_classes}"]
    classes = np.flatnonzero(counts)
    if [row["category_index"], row["class_px"]] != [classes.tolist(), counts[classes].tolist()]:
        problems.append("category_index and class_px are not those of its label")
    fields = zip(PLANES[1:], nearest_classes(label), strict=True)
    return problems + [
        f"{name} is not that of its label"
        for name, plane in fields
        if not np.array_equal(planes[name], plane)
    ]
