"""Evaluate mean IoU and boundary F-score from folders of label maps, one PNG per image.

Files are paired by name. Cityscapes names start with the frame (CITY_123456_123456), BDD100K names
are the image's with or without `_train_id`; other data sets have the same path in both folders.
Pixel values are train ids, or Cityscapes' label ids on request.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, TypeVar

import numpy as np

from pipeline import storage
from pipeline.data.cityscapes_classes import CLASSES, TRAIN_CLASSES
from pipeline.errors import RecipeError
from pipeline.evaluation.boundary_fscore import (
    RADII_PX,
    TRUTH,
    Absent,
    BoundaryF,
    boundary_f,
    match_boundaries,
)
from pipeline.evaluation.folders import (
    FolderProblems,
    Pair,
    describe_folder,
    file_name,
    map_pairs,
    pair_files,
    parse_frame,
    read_gray,
)
from pipeline.evaluation.mean_iou import (
    VOID,
    LabelMap,
    MeanIou,
    count_pixels,
    find_labels,
    mean_iou,
)
from pipeline.evaluation.problems import Problems, raise_all
from pipeline.text import format_counts

Ids = Literal["train", "label"]

Result = TypeVar("Result")

_TRUTH_SUFFIX: dict[Ids, str] = {
    "train": "_gtFine_labelTrainIds.png",
    "label": "_gtFine_labelIds.png",
}


_PNG = ".png"
"""Ending of label maps; its case does not matter."""

_log = logging.getLogger(__name__)

_TRAIN_ID = np.full(VOID + 1, VOID, np.uint8)
_TRAIN_ID[[each.label_id for each in TRAIN_CLASSES]] = [each.train_id for each in TRAIN_CLASSES]

_LABEL_IDS = [each.label_id for each in CLASSES if each.label_id >= 0]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFolders:
    """Two folders of label maps, and how to read them."""

    truth: str
    detections: str
    classes: str
    """cityscapes, bdd, or the number of classes."""
    truth_ids: Ids = "train"
    detections_ids: Ids = "train"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            RecipeError: all problems.
        """
        problems = []
        if self.classes not in ("cityscapes", "bdd") and not (
            self.classes.isdecimal() and 0 < int(self.classes) < VOID
        ):
            problems.append(
                f"classes {self.classes!r}: use cityscapes, bdd, or the number of classes, 1 to 254"
            )
        elif self.classes != "cityscapes" and "label" in (self.truth_ids, self.detections_ids):
            problems.append(
                f"only Cityscapes has label ids; use train ids with classes {self.classes}"
            )
        if storage.absolute(self.truth) == storage.absolute(self.detections):
            problems.append(f"truth and detections are the same folder: {self.truth}")
        if problems:
            raise RecipeError("; ".join(problems))

    @property
    def names(self) -> list[str]:
        """Class names, in the order of train ids."""
        if self.classes in ("cityscapes", "bdd"):
            return [each.name for each in TRAIN_CLASSES]
        return [f"class {index}" for index in range(int(self.classes))]


def evaluate_miou(folders: LabelFolders) -> MeanIou:
    """Measure the mean IoU of label maps.

    Raises:
        StorageError: a folder cannot be listed.
        DatasetError: all problems of both folders.
    """
    classes = len(folders.names)
    counts = np.zeros((classes, classes + 1), np.int64)
    images = 0
    for each in _map_label_maps(folders, lambda t, p: count_pixels(t, p, num_classes=classes)):
        counts += each
        images += 1
    _require_truth(folders, has_any=bool(counts.any()), what="a class")
    return mean_iou(counts, names=folders.names, images=images)


def evaluate_boundary_f(
    folders: LabelFolders, *, radii_px: Sequence[int] = RADII_PX, absent: Absent = "one"
) -> BoundaryF:
    """Measure the boundary F-score of label maps.

    Args:
        folders: what to measure.
        radii_px: largest distances of a match, in pixels.
        absent: whether an image without an outline of a class counts as F = 1 or is left out.

    Raises:
        RecipeError: a radius is below 1.
        StorageError: a folder cannot be listed.
        DatasetError: all problems of both folders.
    """
    if not radii_px or min(radii_px) < 1:
        raise RecipeError(f"radii {list(radii_px)}: use integers from 1 on, such as 3 5 9 12")
    classes = len(folders.names)
    counts = list(
        _map_label_maps(
            folders, lambda t, p: match_boundaries(t, p, num_classes=classes, radii_px=radii_px)
        )
    )
    has_any = any(bool(each[:, 0, TRUTH].any()) for each in counts)
    _require_truth(folders, has_any=has_any, what="an outline, the border between two classes")
    return boundary_f(counts, names=folders.names, radii_px=radii_px, absent=absent)


def _require_truth(folders: LabelFolders, *, has_any: bool, what: str) -> None:
    """Refuse a truth on which every prediction gets the same score."""
    problems = Problems(folders.truth)
    if not has_any:
        problems.add("no objects", f"no pixel has {what}")
    raise_all([problems])


def _map_label_maps(
    folders: LabelFolders, measure: Callable[[LabelMap, LabelMap], Result]
) -> Iterator[Result]:
    """Measure every pair of label maps; all problems are raised after the last pair."""
    problems = FolderProblems.of(folders.truth, folders.detections)
    pairs = pair_files(
        _list_truth(folders, problems.truth),
        _list_predictions(folders, problems.detections),
        problems,
    )
    classes = len(folders.names)

    def measure_pair(pair: Pair, problems: FolderProblems) -> Result | None:
        truth = _read(pair.truth, problems.truth, ids=folders.truth_ids, num_classes=classes)
        prediction = _read(
            pair.detections, problems.detections, ids=folders.detections_ids, num_classes=classes
        )
        if truth is None or prediction is None:
            return None
        if truth.shape != prediction.shape:
            sizes = "{} x {}, the truth has {} x {}".format(*prediction.shape, *truth.shape)
            where = f"{file_name(pair.detections)}: {sizes}"
            problems.detections.add("wrong label map size", where)
            return None
        return measure(truth, prediction)

    return map_pairs(pairs, measure_pair, problems)


def _list_pngs(folder: str) -> list[str]:
    """List the PNGs of a folder, and count its other files in the log."""
    files = storage.list_files(folder, recursive=True)
    pngs = [uri for uri in files if uri.lower().endswith(_PNG)]
    # Cityscapes' own folders have polygons beside the label maps.
    others = [
        uri for uri in files if not uri.lower().endswith(_PNG) and "_gtFine_" not in file_name(uri)
    ]
    if pngs and others:
        counts = format_counts(PurePosixPath(uri).suffix.lower() or "no ending" for uri in others)
        _log.warning(
            "evaluate: not read in %s: %s (such as %s)", folder, counts, file_name(others[0])
        )
    return pngs


def _list_truth(folders: LabelFolders, problems: Problems) -> dict[str, list[str]]:
    files = _list_pngs(folders.truth)
    suffix = _TRUTH_SUFFIX[folders.truth_ids]
    if folders.classes == "cityscapes" and any("_gtFine_" in file_name(uri) for uri in files):
        named = [uri for uri in files if uri.endswith(suffix)]
        if not named:
            others = ", ".join(sorted({file_name(u).split("_gtFine_")[-1] for u in files}))
            where = f"{len(files)} PNGs, none is *{suffix}; there are {others:.100}"
            problems.add("no label maps in the folder", where)
            return {}
        files = named
    elif not files:
        problems.add(
            "no label maps in the folder", f"{describe_folder(folders.truth)}; none is *.png"
        )
    return _group_by_image(folders, files, folders.truth, problems)


def _list_predictions(folders: LabelFolders, problems: Problems) -> dict[str, list[str]]:
    files = _list_pngs(folders.detections)
    if not files:
        problems.add(
            "no label maps in the folder", f"{describe_folder(folders.detections)}; none is *.png"
        )
    truth = [uri for uri in files if "_gtFine_" in file_name(uri)]
    for uri in truth:
        problems.add("ground truth among the detections", file_name(uri))
    others = [uri for uri in files if "_gtFine_" not in file_name(uri)]
    return _group_by_image(folders, others, folders.detections, problems)


def _group_by_image(
    folders: LabelFolders, files: Sequence[str], root: str, problems: Problems
) -> dict[str, list[str]]:
    by_key: dict[str, list[str]] = defaultdict(list)
    for uri in files:
        match folders.classes:
            case "cityscapes":
                key = parse_frame(uri)
            case "bdd":
                key = file_name(uri)[: -len(_PNG)].removesuffix("_train_id")
            case _:
                key = uri.removeprefix(storage.absolute(root)).strip("/")[: -len(_PNG)]
        if key is None:
            problems.add("no frame in the file name", file_name(uri))
        else:
            by_key[key].append(uri)
    return by_key


def _read(uri: str, problems: Problems, *, ids: Ids, num_classes: int) -> LabelMap | None:
    """Read a label map as train ids; None if it has a problem."""
    name = file_name(uri)
    pixels = read_gray(uri, problems, where=name, palette=True)
    if pixels is None:
        return None
    if pixels.dtype.itemsize > 1:
        problems.add("label map is not 8-bit", f"{name}: {pixels.dtype}")
        return None
    labels: LabelMap = pixels.astype(np.uint8)
    known = _LABEL_IDS if ids == "label" else [*range(num_classes), VOID]
    unknown = np.setdiff1d(find_labels(labels), known)
    if unknown.size:
        values = ", ".join(map(str, unknown[:5]))
        problems.add("unknown label value", f"{name}: {values}, read as {ids} ids")
        return None
    return _TRAIN_ID[labels] if ids == "label" else labels
