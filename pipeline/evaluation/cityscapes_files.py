"""Cityscapes' instance AP of folders: gtFine's split, and masks in the official submission format.

A submission has one txt for each frame, anywhere below its folder, with lines of `mask path, class
id, score`; the path starts at the txt's own folder and names a PNG of the frame's size, 0 outside.
cityscapesScripts takes what it is given; here everything that is wrong is told at once.
"""

import math
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.data.cityscapes_classes import CLASSES
from pipeline.errors import StorageError
from pipeline.evaluation.bands import CITYSCAPES_DILATION_RATIO, check_ratio
from pipeline.evaluation.cityscapes_ap import CityscapesMetrics, cityscapes_metrics
from pipeline.evaluation.cityscapes_frames import FoundMask, FrameCounts, count_frame, strange_ids
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
from pipeline.evaluation.problems import Faults, raise_all, short

TRUTH_SUFFIX = "_gtFine_instanceIds.png"

_LABEL_IDS = {each.label_id for each in CLASSES}


def evaluate_cityscapes(
    truth: str, detections: str, *, dilation_ratio: float = CITYSCAPES_DILATION_RATIO
) -> CityscapesMetrics:
    """Measure a submission against a split of gtFine, both as folders or URIs.

    Args:
        truth: folder of a split, such as gtFine/val.
        detections: folder of the submission.
        dilation_ratio: the band of the boundary, in image diagonals.

    Raises:
        RecipeError: the ratio is not between 0 and 1.
        StorageError: a folder cannot be listed.
        DatasetError: everything that is wrong with the two, in one message.
    """
    check_ratio(dilation_ratio)
    of_truth, of_detections = Faults(truth), Faults(detections)
    pairs = pair_files(
        _truth_files(truth, of_truth),
        _submission_files(detections, of_detections),
        of_truth=of_truth,
        of_detections=of_detections,
    )

    def measure(pair: Pair, in_truth: Faults, in_detections: Faults) -> FrameCounts | None:
        instance_map = _instance_map(pair, in_truth)
        lines = _lines(pair.detections, detections, in_detections)
        if instance_map is None:
            return None
        masks = _masks(lines, instance_map.shape, in_detections)
        return count_frame(instance_map, masks, dilation_ratio=dilation_ratio)

    counted = measure_pairs(pairs, measure, of_truth=of_truth, of_detections=of_detections)
    frames = [frame for frame in counted if frame is not None]
    foreign = Counter(label_id for frame in frames for label_id in frame.foreign_ids)
    if foreign and not any(frame.empty or len(frame.scores) for frame in frames):
        ids = ", ".join(map(str, sorted(foreign)))
        of_detections.add("class ids without instances", f"all {foreign.total()} masks have {ids}")
        raise_all([of_detections])
    return cityscapes_metrics(frames, dilation_ratio=dilation_ratio)


def _truth_files(folder: str, faults: Faults) -> dict[str, list[str]]:
    files = storage.list_files(folder, suffix=TRUTH_SUFFIX, recursive=True)
    by_frame: dict[str, list[str]] = defaultdict(list)
    for uri in files:
        by_frame[file_name(uri).removesuffix(TRUTH_SUFFIX)].append(uri)
    if not files:
        faults.add("folder without truth", f"{describe(folder)}; none is *{TRUTH_SUFFIX}")
    return by_frame


def _submission_files(folder: str, faults: Faults) -> dict[str, list[str]]:
    files = storage.list_files(folder, suffix=".txt", recursive=True)
    by_frame: dict[str, list[str]] = defaultdict(list)
    for uri in files:
        frame = frame_of(uri)
        if frame is None:
            faults.add("name that tells no frame", file_name(uri))
        else:
            by_frame[frame].append(uri)
    if not files:
        faults.add("folder without submission", f"{describe(folder)}; none is *.txt")
    return by_frame


def _instance_map(pair: Pair, faults: Faults) -> NDArray[np.uint16] | None:
    name = file_name(pair.truth)
    try:
        pixels = read_gray(pair.truth, palette=False)
    except BrokenImageError as error:
        faults.add("image that cannot be read", f"{name}: {error}")
        return None
    if pixels.dtype != np.uint16:
        kind = "instance map that is not of 16 bits"
        faults.add(kind, f"{name}: {pixels.dtype}, values up to {pixels.max()}")
        return None
    instance_map = pixels.astype(np.uint16)
    strange = strange_ids(instance_map)
    if strange:
        faults.add("instance id of no class", f"{name}: {', '.join(map(str, strange[:5]))}")
        return None
    return instance_map


class _Line(NamedTuple):
    """One line of a frame's txt."""

    place: str
    mask: str
    label_id: int
    score: float


def _lines(txt: str, root: str, faults: Faults) -> list[_Line]:
    name = file_name(txt)
    try:
        text = storage.read_bytes(txt).decode()
    except (StorageError, UnicodeDecodeError) as error:
        faults.add("line of no known form", f"{name}: {error}")
        return []
    lines: list[_Line] = []
    seen: set[str] = set()
    for number, fields in enumerate(map(str.split, text.splitlines()), start=1):
        line = _line(fields, f"{name}, line {number}", txt, root, faults) if fields else None
        if line is not None and line.mask in seen:
            faults.add("same mask twice", f"{line.place}: {fields[0]}")
        elif line is not None:
            seen.add(line.mask)
            lines.append(line)
    return lines


def _line(fields: list[str], place: str, txt: str, root: str, faults: Faults) -> _Line | None:
    class_id, score = (
        (_number(field) for field in fields[1:3]) if len(fields) == 3 else (None, None)
    )
    if class_id is None or score is None:
        faults.add("line of no known form", f"{place}: {short(' '.join(fields))}")
        return None
    if not math.isfinite(score):
        faults.add("score that is not a finite number", f"{place}: {score}")
        return None
    if class_id not in _LABEL_IDS:
        faults.add("class id outside the table", f"{place}: {fields[1]}")
        return None
    base = storage.absolute(root)
    inside = posixpath.dirname(txt.removeprefix(base).lstrip("/"))
    path = posixpath.normpath(posixpath.join(inside, fields[0]))
    if path.startswith(("/", "../")):
        faults.add("mask path that leads outside", f"{place}: {short(fields[0])}")
        return None
    return _Line(place, storage.join(base, path), int(class_id), score)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _masks(lines: list[_Line], size_hw: tuple[int, ...], faults: Faults) -> Iterator[FoundMask]:
    """Read the masks that are as they should be."""
    for line in lines:
        try:
            pixels = read_gray(line.mask, palette=False)
        except BrokenImageError as error:
            kind = "image that cannot be read"
            faults.add(kind, f"{line.place}: {file_name(line.mask)}: {error}")
            continue
        if pixels.shape != size_hw:
            sizes = (
                f"{pixels.shape[0]} x {pixels.shape[1]}, the frame has {size_hw[0]} x {size_hw[1]}"
            )
            faults.add("mask of another size", f"{line.place}: {sizes}")
            continue
        yield FoundMask(line.label_id, line.score, pixels != 0)
