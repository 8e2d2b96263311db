"""LVIS's federated rules, as in the `lvis` package: which annotations and detections count.

A detection counts only in images where its category was checked: those that have the category, or
list it as absent. In an image where the category is not exhaustively annotated, an unmatched
detection is ignored. An image has at most 300 detections.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.ap_engine import (
    MetricName,
    Scores,
    average_valid,
    run_lvis,
    with_area,
    with_boxes,
)
from pipeline.evaluation.coco_files import CheckedFiles, Entry
from pipeline.evaluation.federated import IMAGE_LISTS

MAX_DETECTIONS = 300
"""Per image, over all categories (lvis-api: LVISResults)."""

_AP50, _AP75 = 0, 5
"""Indices of IoU .50 and .75."""


def drop_unknown_categories(rows: object, truth: object) -> tuple[object, tuple[str, ...]]:
    """Drop detections of categories that the truth does not have: these were not checked.

    A truth of few images, and the COCO categories of LVIS, lack some categories that a model knows.
    Detections of id 0 stay and are reported as a problem: they mean that indices were written.

    Returns:
        The other detections, and a notice if any were dropped.
    """
    if not isinstance(rows, list) or not isinstance(truth, Mapping):
        return rows, ()
    categories = truth.get("categories")
    listed = categories if isinstance(categories, list) else []
    known = {entry.get("id") for entry in listed if isinstance(entry, dict)}

    def is_unknown(row: object) -> bool:
        key = row.get("category_id") if isinstance(row, dict) else None
        return type(key) is int and key > 0 and key not in known

    unknown = Counter(row["category_id"] for row in rows if is_unknown(row))
    if not unknown or unknown.total() == len(rows):
        return rows, ()
    ids = ", ".join(map(str, sorted(unknown)[:5])) + (", ..." if len(unknown) > 5 else "")
    notice = (
        f"{unknown.total()} detections are of {len(unknown)} categories that the truth does not "
        f"have ({ids}) and do not count"
    )
    return [row for row in rows if not is_unknown(row)], (notice,)


def measure_lvis(
    files: CheckedFiles, truth: Mapping[str, Any], *, metric: MetricName, dilation_ratio: float
) -> Scores:
    """Score checked files under LVIS's rules."""
    # lvis-api drops entries without area, also from the truth (LVIS.get_ann_ids).
    annotations = [entry for entry in files.annotations if entry["area"] > 0]
    best = _select_best(with_area(files.detections, metric=metric))
    found = [entry for entry in best if entry["area"] > 0]
    categories = _CheckedCategories.read(truth, annotations)
    precision, recall = run_lvis(
        _encode_truth(files, annotations, categories),
        found,
        metric=metric,
        dilation_ratio=dilation_ratio,
        max_detections=MAX_DETECTIONS,
    )
    frequency = {entry["id"]: entry["frequency"] for entry in truth["categories"]}
    frequencies = np.array([frequency[key] for key in sorted(frequency)])
    values = [
        precision[..., 0],
        precision[_AP50, ..., 0],
        precision[_AP75, ..., 0],
        *(precision[..., size] for size in (1, 2, 3)),
        *(precision[:, :, frequencies == each, 0] for each in "rcf"),
        *(recall[..., size] for size in (0, 1, 2, 3)),
    ]
    return Scores(
        values=[average_valid(each) for each in values],
        precision=precision[..., 0],
        objects=annotations,
        notices=tuple(_report_ignored(files, best, found, categories)),
    )


@dataclass(frozen=True, slots=True)
class _CheckedCategories:
    """Categories that were checked, by image id."""

    present: dict[int, set[int]]
    absent: dict[int, set[int]]
    not_exhaustive: dict[int, set[int]]

    @classmethod
    def read(cls, truth: Mapping[str, Any], annotations: list[Entry]) -> "_CheckedCategories":
        present: dict[int, set[int]] = {image["id"]: set() for image in truth["images"]}
        for entry in annotations:
            present[entry["image_id"]].add(entry["category_id"])
        absent, not_exhaustive = (
            {image["id"]: set(image[key]) for image in truth["images"]} for key in IMAGE_LISTS
        )
        return cls(present, absent, not_exhaustive)

    def cover(self, detection: Entry) -> bool:
        """Tell whether the category of a detection was checked in its image."""
        image_id, category_id = detection["image_id"], detection["category_id"]
        return category_id in self.present[image_id] or category_id in self.absent[image_id]


def _select_best(detections: list[Entry]) -> list[Entry]:
    """Keep the best 300 of each image; of equal scores the first."""
    by_image: dict[int, list[Entry]] = defaultdict(list)
    for entry in detections:
        by_image[entry["image_id"]].append(entry)
    return [
        entry
        for entries in by_image.values()
        for entry in (
            entries
            if len(entries) <= MAX_DETECTIONS
            else sorted(entries, key=lambda each: -each["score"])[:MAX_DETECTIONS]
        )
    ]


def _encode_truth(
    files: CheckedFiles, annotations: list[Entry], categories: _CheckedCategories
) -> bytes:
    """Encode the truth for vernier, which refuses contradicting lists of an image.

    Present wins over absent and not exhaustive. A category that is listed as not exhaustive but is
    not present counts as not checked: no detection of it can be a false positive.
    """
    known = {entry["id"] for entry in files.categories}
    images = []
    for image in files.images:
        key = image["id"]
        present, not_exhaustive = categories.present[key], categories.not_exhaustive[key]
        absent = (categories.absent[key] - present - not_exhaustive) & known
        lists = (sorted(absent), sorted(not_exhaustive & present))
        images.append(image | dict(zip(IMAGE_LISTS, lists, strict=True)))
    # vernier requires a frequency; `measure_lvis` groups by the true ones.
    kinds = [entry | {"frequency": "f"} for entry in files.categories]
    entries = [_to_json(entry) | {"iscrowd": 0} for entry in with_boxes(annotations)]
    return json.dumps({"images": images, "categories": kinds, "annotations": entries}).encode()


def _to_json(entry: Entry) -> Entry:
    if "segmentation" not in entry:
        return entry
    rle = entry["segmentation"]
    return entry | {"segmentation": rle | {"counts": rle["counts"].decode()}}


def _report_ignored(
    files: CheckedFiles, best: list[Entry], found: list[Entry], categories: _CheckedCategories
) -> Iterator[str]:
    """Report how many entries the rules leave out."""
    cut = len(files.detections) - len(best)
    if cut:
        yield f"{cut} detections are beyond the best {MAX_DETECTIONS} of their images: not counted"
    empty = len(best) - len(found)
    if empty:
        yield f"{empty} detections have no area: not counted, as in lvis"
    unchecked = sum(not categories.cover(entry) for entry in found)
    if unchecked:
        yield (
            f"{unchecked} of {len(found)} detections are of categories that were not checked in "
            "their image: ignored"
        )
    flat = sum(entry["area"] <= 0 for entry in files.annotations)
    if flat:
        yield f"{flat} annotations have no area: not counted, as in lvis"
    crowds = sum(entry["iscrowd"] for entry in files.annotations)
    if crowds:
        yield f"{crowds} annotations are crowds, which LVIS does not have: counted as objects"
