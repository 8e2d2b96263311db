"""Mean IoU and boundary F-score of folders of label maps: one PNG an image, one value a pixel.

Files are paired by their names. Cityscapes' start with the frame's (CITY_123456_123456), BDD100K's
are the image's with or without `_train_id`, those of other data sets have the same path in both
folders. Values are train ids, or Cityscapes' label ids where that is said.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from pipeline import storage
from pipeline.data.cityscapes_classes import CLASSES, TRAINED
from pipeline.errors import RecipeError
from pipeline.evaluation.boundary_fscore import (
    RADII_PX,
    Absent,
    BoundaryF,
    boundary_f,
    match_boundaries,
)
from pipeline.evaluation.folders import (
    BrokenImageError,
    Pair,
    describe,
    file_name,
    frame_of,
    measure_pairs,
    pair_files,
    read_gray,
)
from pipeline.evaluation.mean_iou import (
    VOID,
    LabelMap,
    MeanIou,
    count_pixels,
    mean_iou,
    values_of,
)
from pipeline.evaluation.problems import Faults

Ids = Literal["train", "label"]

Measured = TypeVar("Measured")

_TRUTH_SUFFIX: dict[Ids, str] = {
    "train": "_gtFine_labelTrainIds.png",
    "label": "_gtFine_labelIds.png",
}


_TRAIN_ID = np.full(VOID + 1, VOID, np.uint8)
_TRAIN_ID[[each.label_id for each in TRAINED]] = [each.train_id for each in TRAINED]

_LABEL_IDS = [each.label_id for each in CLASSES if each.label_id >= 0]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelFolders:
    """Two folders of label maps, and how to read them."""

    truth: str
    detections: str
    classes: str
    """cityscapes, bdd, or a number of classes."""
    truth_ids: Ids = "train"
    detections_ids: Ids = "train"

    def __post_init__(self) -> None:
        """Refuse ids that the classes do not have.

        Raises:
            RecipeError: all that is wrong.
        """
        problems = []
        if self.classes not in ("cityscapes", "bdd") and not (
            self.classes.isdecimal() and 0 < int(self.classes) < VOID
        ):
            problems.append(
                f"classes {self.classes!r}: take cityscapes, bdd, or how many there are, 1 to 254"
            )
        elif self.classes != "cityscapes" and "label" in (self.truth_ids, self.detections_ids):
            problems.append(f"only Cityscapes has label ids; classes {self.classes} has train ids")
        if storage.absolute(self.truth) == storage.absolute(self.detections):
            problems.append(f"truth and detections are the same folder: {self.truth}")
        if problems:
            raise RecipeError("; ".join(problems))

    @property
    def names(self) -> list[str]:
        """Names of the classes, in the order of train ids."""
        if self.classes in ("cityscapes", "bdd"):
            return [each.name for each in TRAINED]
        return [f"class {index}" for index in range(int(self.classes))]


def evaluate_miou(folders: LabelFolders) -> MeanIou:
    """Measure the mean IoU of label maps.

    Raises:
        StorageError: a folder cannot be listed.
        DatasetError: everything that is wrong with the two, in one message.
    """
    number = len(folders.names)
    counts = np.zeros((number, number + 1), np.int64)
    images = 0
    for each in _measured(folders, lambda t, p: count_pixels(t, p, num_classes=number)):
        counts += each
        images += 1
    return mean_iou(counts, names=folders.names, images=images)


def evaluate_boundary_f(
    folders: LabelFolders, *, radii_px: Sequence[int] = RADII_PX, absent: Absent = "one"
) -> BoundaryF:
    """Measure the boundary F-score of label maps.

    Args:
        folders: what to measure.
        radii_px: distances that count as near, in pixels.
        absent: what an image counts in which a class has no outline: F = 1, or nothing.

    Raises:
        RecipeError: a radius is below 1.
        StorageError: a folder cannot be listed.
        DatasetError: everything that is wrong with the two, in one message.
    """
    if not radii_px or min(radii_px) < 1:
        raise RecipeError(f"radii {list(radii_px)}: give whole pixels from 1 on, such as 3 5 9 12")
    number = len(folders.names)
    counts = _measured(
        folders, lambda t, p: match_boundaries(t, p, num_classes=number, radii_px=radii_px)
    )
    return boundary_f(list(counts), names=folders.names, radii_px=radii_px, absent=absent)


def _measured(
    folders: LabelFolders, measure: Callable[[LabelMap, LabelMap], Measured]
) -> Iterator[Measured]:
    """Measure every pair; the error that tells all faults comes after the last."""
    of_truth, of_detections = Faults(folders.truth), Faults(folders.detections)
    pairs = pair_files(
        _truth_files(folders, of_truth),
        _detections_files(folders, of_detections),
        of_truth=of_truth,
        of_detections=of_detections,
    )
    number = len(folders.names)

    def one(pair: Pair, in_truth: Faults, in_detections: Faults) -> Measured | None:
        truth = _read(pair.truth, in_truth, ids=folders.truth_ids, num_classes=number)
        prediction = _read(
            pair.detections, in_detections, ids=folders.detections_ids, num_classes=number
        )
        if truth is None or prediction is None:
            return None
        if truth.shape != prediction.shape:
            sizes = (f"{each.shape[0]} x {each.shape[1]}" for each in (prediction, truth))
            where = f"{file_name(pair.detections)}: {', the truth has '.join(sizes)}"
            in_detections.add("label map of another size", where)
            return None
        return measure(truth, prediction)

    for each in measure_pairs(pairs, one, of_truth=of_truth, of_detections=of_detections):
        if each is not None:
            yield each


def _truth_files(folders: LabelFolders, faults: Faults) -> dict[str, list[str]]:
    files = storage.list_files(folders.truth, suffix=".png", recursive=True)
    suffix = _TRUTH_SUFFIX[folders.truth_ids]
    if folders.classes == "cityscapes" and any("_gtFine_" in file_name(uri) for uri in files):
        named = [uri for uri in files if uri.endswith(suffix)]
        if not named:
            others = ", ".join(sorted({file_name(u).split("_gtFine_")[-1] for u in files}))
            where = f"{len(files)} PNGs, none is *{suffix}; there are {others:.100}"
            faults.add("folder without label maps", where)
            return {}
        files = named
    elif not files:
        faults.add("folder without label maps", f"{describe(folders.truth)}; none is *.png")
    return _by_key(folders, files, folders.truth, faults)


def _detections_files(folders: LabelFolders, faults: Faults) -> dict[str, list[str]]:
    files = storage.list_files(folders.detections, suffix=".png", recursive=True)
    if not files:
        faults.add("folder without label maps", f"{describe(folders.detections)}; none is *.png")
    truth = [uri for uri in files if "_gtFine_" in file_name(uri)]
    for uri in truth:
        faults.add("truth given as detections", file_name(uri))
    others = [uri for uri in files if "_gtFine_" not in file_name(uri)]
    return _by_key(folders, others, folders.detections, faults)


def _by_key(
    folders: LabelFolders, files: Sequence[str], root: str, faults: Faults
) -> dict[str, list[str]]:
    by_key: dict[str, list[str]] = defaultdict(list)
    for uri in files:
        match folders.classes:
            case "cityscapes":
                key = frame_of(uri)
            case "bdd":
                key = file_name(uri).removesuffix(".png").removesuffix("_train_id")
            case _:
                key = uri.removeprefix(storage.absolute(root)).strip("/").removesuffix(".png")
        if key is None:
            faults.add("name that tells no frame", file_name(uri))
        else:
            by_key[key].append(uri)
    return by_key


def _read(uri: str, faults: Faults, *, ids: Ids, num_classes: int) -> LabelMap | None:
    """Read a label map as train ids; None where it is at fault."""
    name = file_name(uri)
    try:
        pixels = read_gray(uri, palette=True)
    except BrokenImageError as error:
        faults.add("image that cannot be read", f"{name}: {error}")
        return None
    if pixels.dtype != np.uint8:
        faults.add("label map that is not of 8 bits", f"{name}: {pixels.dtype}")
        return None
    labels: LabelMap = pixels.astype(np.uint8)
    known = _LABEL_IDS if ids == "label" else [*range(num_classes), VOID]
    strange = np.setdiff1d(values_of(labels), known)
    if strange.size:
        values = ", ".join(map(str, strange[:5]))
        faults.add("label value outside the table", f"{name}: {values}, read as {ids} ids")
        return None
    return _TRAIN_ID[labels] if ids == "label" else labels
