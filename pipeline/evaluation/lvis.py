"""LVIS AP: mask, box and boundary AP under federated rules, with rare, common and frequent apart.

A detection counts only where somebody looked for its category: in images that have it, or that say
it is not there. One that matches nothing is no error in an image where its category is not fully
marked. An image may have 300 detections. vernier does the matching; its numbers are those of the
`lvis` package, and for boundary AP those of boundary-iou-api, to the last bit.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The public results have no precision by category; the version is pinned.
from vernier import _core as engine

from pipeline.evaluation.bands import COCO_DILATION_RATIO, about_thin, check_ratio
from pipeline.evaluation.coco_files import CheckedFiles, Entry, check, read_json
from pipeline.evaluation.federated import IMAGE_LISTS
from pipeline.evaluation.metrics import METRIC_PREFIX, MetricName, boxed

MAX_DETECTIONS = 300
"""Of an image, over all categories (lvis-api: LVISResults)."""

_AP50, _AP75 = 0, 5
"""Places of IoU .50 and .75."""

_LVIS_NAMES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "APs",
    "ap_medium": "APm",
    "ap_large": "APl",
    "ap_rare": "APr",
    "ap_common": "APc",
    "ap_frequent": "APf",
    "ar_300": "AR@300",
    "ar_small": "ARs@300",
    "ar_medium": "ARm@300",
    "ar_large": "ARl@300",
}
"""The thirteen numbers in the order in which the lvis package gives them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LvisMetrics:
    """The numbers of one metric, 0 to 1; NaN where the truth has no such objects."""

    metric: MetricName
    ap: float
    """Mean over IoU .50 to .95 and all categories."""
    ap50: float
    ap75: float
    ap_small: float
    """Objects below 32 x 32 pixels."""
    ap_medium: float
    ap_large: float
    """Objects from 96 x 96 pixels on."""
    ap_rare: float
    """Categories in at most 10 images of the training split, as the truth says."""
    ap_common: float
    """In at most 100."""
    ap_frequent: float
    ar_300: float
    """Recall with 300 detections for each image."""
    ar_small: float
    ar_medium: float
    ar_large: float
    per_category: dict[str, float]
    """AP by the category's name, in the order of category ids."""
    objects: dict[str, int]
    """Annotations by the category's name."""
    images: int
    annotations: int
    detections: int
    engine: str
    """Which program gave the numbers, with its version."""
    dilation_ratio: float = COCO_DILATION_RATIO
    """The band of boundary AP, in image diagonals."""
    notices: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """What a tracker calls the metric: mask, box or boundary."""
        return METRIC_PREFIX[self.metric]

    def by_lvis_name(self) -> dict[str, float]:
        """Give the thirteen numbers as lvis calls them: AP, AP50, ..., APr, ..., AR@300, ..."""
        return {name: getattr(self, key) for key, name in _LVIS_NAMES.items()}

    def flat(self) -> dict[str, float]:
        """Give the thirteen numbers as a tracker calls them: mask_ap, ..., mask_ap_rare, ..."""
        return {f"{self.prefix}_{key}": getattr(self, key) for key in _LVIS_NAMES}


def evaluate_lvis(
    truth: str | Mapping[str, Any],
    detections: str | Sequence[Mapping[str, Any]],
    *,
    metric: MetricName,
    dilation_ratio: float = COCO_DILATION_RATIO,
) -> LvisMetrics:
    """Measure detections against a truth of LVIS, as values or as paths or URIs.

    With "segm" and "boundary" a detection counts as small, medium or large by its mask. The lvis
    package takes the bbox's area where the results carry one; detectron2 removes it for that.

    Args:
        truth: what an LVIS annotation file holds: images with neg_category_ids and
            not_exhaustive_category_ids, categories with a frequency.
        detections: what a COCO results file holds.
        metric: mask, box or boundary AP.
        dilation_ratio: the band of boundary AP, in image diagonals.

    Raises:
        RecipeError: the ratio is not between 0 and 1.
        StorageError: a file cannot be read.
        DatasetError: everything that is wrong with the two, in one message.
    """
    return evaluate_lvis_metrics(
        truth, detections, metrics=(metric,), dilation_ratio=dilation_ratio
    )[metric]


def evaluate_lvis_metrics(
    truth: str | Mapping[str, Any],
    detections: str | Sequence[Mapping[str, Any]],
    *,
    metrics: Sequence[MetricName],
    dilation_ratio: float = COCO_DILATION_RATIO,
) -> dict[MetricName, LvisMetrics]:
    """Measure several metrics at once; files are read and checked once.

    Raises:
        RecipeError: the ratio is not between 0 and 1.
        StorageError: a file cannot be read.
        DatasetError: everything that is wrong with the two, in one message.
    """
    check_ratio(dilation_ratio)
    given: Any = read_json(truth) if isinstance(truth, str) else truth
    rows = read_json(detections) if isinstance(detections, str) else detections
    rows, foreign = _of_known_categories(rows, given)
    files = check(
        given,
        rows,
        masks=any(metric != "bbox" for metric in metrics),
        boxes="bbox" in metrics,
        federated=True,
        names=(
            truth if isinstance(truth, str) else "truth",
            detections if isinstance(detections, str) else "detections",
        ),
    )
    return {
        metric: _measure(files, given, metric=metric, ratio=dilation_ratio, notices=foreign)
        for metric in metrics
    }


def _of_known_categories(rows: object, truth: object) -> tuple[object, tuple[str, ...]]:
    """Leave out detections of categories that the truth does not have: nobody looked for those.

    A truth of few images, and the COCO categories of LVIS, lack some that a model knows. Id 0 stays
    and becomes a fault: it tells that indexes were written.
    """
    if not isinstance(rows, list) or not isinstance(truth, Mapping):
        return rows, ()
    categories = truth.get("categories")
    listed = categories if isinstance(categories, list) else []
    known = {entry.get("id") for entry in listed if isinstance(entry, dict)}

    def is_foreign(row: object) -> bool:
        key = row.get("category_id") if isinstance(row, dict) else None
        return type(key) is int and key > 0 and key not in known

    foreign = Counter(row["category_id"] for row in rows if is_foreign(row))
    if not foreign or foreign.total() == len(rows):
        return rows, ()
    named = ", ".join(map(str, sorted(foreign)[:5])) + (", ..." if len(foreign) > 5 else "")
    notice = (
        f"{foreign.total()} detections are of {len(foreign)} categories that the truth does not "
        f"have ({named}): nobody looked for them, so they do not count"
    )
    return [row for row in rows if not is_foreign(row)], (notice,)


def _measure(
    files: CheckedFiles,
    truth: Mapping[str, Any],
    *,
    metric: MetricName,
    ratio: float,
    notices: tuple[str, ...],
) -> LvisMetrics:
    # lvis-api drops what has no area, from the truth too (LVIS.get_ann_ids).
    annotations = [entry for entry in files.annotations if entry["area"] > 0]
    best = _best([_with_area(entry, metric=metric) for entry in files.detections])
    found = [entry for entry in best if entry["area"] > 0]
    looked = _Looked.read(truth, annotations)
    precision, recall = _precision_recall(
        _truth_json(files, annotations, looked), found, metric=metric, ratio=ratio
    )
    ids = sorted(entry["id"] for entry in files.categories)
    names = {entry["id"]: entry["name"] for entry in files.categories}
    frequency = {entry["id"]: entry["frequency"] for entry in truth["categories"]}
    counts = Counter(entry["category_id"] for entry in annotations)
    numbers = [
        _mean_known(precision[..., 0]),
        _mean_known(precision[_AP50, ..., 0]),
        _mean_known(precision[_AP75, ..., 0]),
        *(_mean_known(precision[..., size]) for size in (1, 2, 3)),
        *(
            _mean_known(precision[:, :, [frequency[key] == each for key in ids], 0])
            for each in "rcf"
        ),
        *(_mean_known(recall[..., size]) for size in (0, 1, 2, 3)),
    ]
    return LvisMetrics(
        metric=metric,
        **dict(zip(_LVIS_NAMES, numbers, strict=True)),
        per_category={
            names[key]: _mean_known(precision[:, :, place, 0]) for place, key in enumerate(ids)
        },
        objects={names[key]: counts[key] for key in ids},
        images=len(files.images),
        annotations=len(files.annotations),
        detections=len(files.detections),
        engine=f"vernier {version('vernier')}",
        dilation_ratio=ratio,
        notices=(
            *files.notices,
            *notices,
            *_about_rules(files, best, found, looked),
            *(about_thin(files, dilation_ratio=ratio) if metric == "boundary" else ()),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Looked:
    """Which categories somebody looked for, by image id."""

    present: dict[int, set[int]]
    absent: dict[int, set[int]]
    not_exhaustive: dict[int, set[int]]

    @classmethod
    def read(cls, truth: Mapping[str, Any], annotations: list[Entry]) -> "_Looked":
        present: dict[int, set[int]] = {image["id"]: set() for image in truth["images"]}
        for entry in annotations:
            present[entry["image_id"]].add(entry["category_id"])
        negative, not_exhaustive = (
            {image["id"]: set(image[key]) for image in truth["images"]} for key in IMAGE_LISTS
        )
        return cls(present, negative, not_exhaustive)

    def covers(self, detection: Entry) -> bool:
        """Tell whether a detection can be right or wrong at all."""
        image_id, category_id = detection["image_id"], detection["category_id"]
        return category_id in self.present[image_id] or category_id in self.absent[image_id]


def _with_area(entry: Entry, *, metric: MetricName) -> Entry:
    area = entry["bbox"][2] * entry["bbox"][3] if metric == "bbox" else entry["mask_area_px"]
    return entry | {"area": area}


def _best(detections: list[Entry]) -> list[Entry]:
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


def _truth_json(files: CheckedFiles, annotations: list[Entry], looked: _Looked) -> bytes:
    """Write the truth for vernier, which takes no contradictions between an image's lists.

    Being present goes before being absent or not exhaustive. Where a category that is not there is
    called not exhaustive, no detection of it can be an error: as if nobody had looked.
    """
    known = {entry["id"] for entry in files.categories}
    images = []
    for image in files.images:
        present, absent, not_exhaustive = (
            each[image["id"]] for each in (looked.present, looked.absent, looked.not_exhaustive)
        )
        lists = (sorted((absent - present - not_exhaustive) & known), not_exhaustive & present)
        images.append(
            image | {key: sorted(ids) for key, ids in zip(IMAGE_LISTS, lists, strict=True)}
        )
    # Groups by frequency are made from its answer; any will do here.
    categories = [entry | {"frequency": "f"} for entry in files.categories]
    plain = [_plain(entry) | {"iscrowd": 0} for entry in boxed(annotations)]
    return json.dumps({"images": images, "categories": categories, "annotations": plain}).encode()


def _plain(entry: Entry) -> Entry:
    """Give an entry that JSON can hold."""
    if "segmentation" not in entry:
        return entry
    rle = entry["segmentation"]
    return entry | {"segmentation": rle | {"counts": rle["counts"].decode()}}


def _precision_recall(
    truth: bytes, found: list[Entry], *, metric: MetricName, ratio: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give precision by IoU, recall, category and size, recall without the second; -1 for none."""
    dataset = engine.CocoDataset.from_lvis_json(truth)
    rows: list[Any] = boxed(found)
    shared: dict[str, Any] = {
        "parity_mode": "strict",
        "max_dets_per_image": MAX_DETECTIONS,
        "use_cats": True,
    }
    if metric == "bbox":
        grid = engine.evaluate_bbox_grid(dataset, rows, dt_area="supplied", **shared)
    elif metric == "segm":
        grid = engine.evaluate_segm_grid(dataset, rows, dt_area="supplied", **shared)
    else:
        grid = engine.evaluate_boundary_grid(
            dataset, rows, dt_area="supplied", dilation_ratio=ratio, **shared
        )
    counted = grid.accumulate([MAX_DETECTIONS])
    return np.asarray(counted.precision)[..., 0], np.asarray(counted.recall)[..., 0]


def _mean_known(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def _about_rules(
    files: CheckedFiles, best: list[Entry], found: list[Entry], looked: _Looked
) -> Iterator[str]:
    """Say what the rules of LVIS left out, so that no detection vanishes without a count."""
    cut = len(files.detections) - len(best)
    if cut:
        yield f"{cut} detections are beyond the best {MAX_DETECTIONS} of their images: not counted"
    empty = len(best) - len(found)
    if empty:
        yield f"{empty} detections have no area: not counted, as lvis does"
    unseen = sum(not looked.covers(entry) for entry in found)
    if unseen:
        yield (
            f"{unseen} of {len(found)} detections are of categories that nobody looked for in "
            "their image: neither right nor wrong"
        )
    flat = sum(entry["area"] <= 0 for entry in files.annotations)
    if flat:
        yield f"{flat} annotations have no area: not counted, as lvis does"
    crowds = sum(entry["iscrowd"] for entry in files.annotations)
    if crowds:
        yield f"{crowds} annotations are crowds, which LVIS does not know: taken as objects"
