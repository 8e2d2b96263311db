"""Evaluate Cityscapes' instance AP from folders: a split of gtFine, and a submission.

A submission has one txt per frame, anywhere below its folder, with lines of `mask path, class id,
score`. The path is relative to the txt's folder and names a PNG of the frame's size, 0 outside the
object. Unlike cityscapesScripts, all files are checked, and one error reports all problems.
"""

import math
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import checksums, storage
from pipeline.data.cityscapes_classes import CLASSES
from pipeline.data.text_files import decode_text
from pipeline.errors import StorageError
from pipeline.evaluation.bands import CITYSCAPES_DILATION_RATIO, check_ratio
from pipeline.evaluation.cityscapes_ap import (
    MIN_OBJECT_PX,
    CityscapesMetrics,
    cityscapes_metrics,
)
from pipeline.evaluation.cityscapes_frames import (
    FoundMask,
    FrameCounts,
    count_frame,
    find_unknown_ids,
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
from pipeline.evaluation.problems import Problems, raise_all, show_value

TRUTH_SUFFIX = "_gtFine_instanceIds.png"

_LABEL_IDS = {each.label_id for each in CLASSES}


def evaluate_cityscapes(
    truth: str, detections: str, *, dilation_ratio: float = CITYSCAPES_DILATION_RATIO
) -> CityscapesMetrics:
    """Measure a submission against a split of gtFine, both as folders or URIs.

    Args:
        truth: folder of a split, such as gtFine/val.
        detections: folder of the submission.
        dilation_ratio: width of the boundary band, in image diagonals.

    Raises:
        RecipeError: the ratio is not between 0 and 1.
        StorageError: a folder cannot be listed.
        DatasetError: all problems of both folders.
    """
    check_ratio(dilation_ratio)
    sums = checksums.read_sums(detections)
    problems = FolderProblems.of(truth, detections)
    pairs = pair_files(
        _list_truth(truth, problems.truth),
        _list_submission(detections, problems.detections),
        problems,
    )

    def count(pair: Pair, problems: FolderProblems) -> FrameCounts | None:
        instance_map = _read_instance_map(pair, problems.truth)
        lines = _read_lines(pair.detections, detections, problems.detections, sums=sums)
        if instance_map is None:
            return None
        masks = _read_masks(lines, instance_map.shape, problems.detections)
        return count_frame(instance_map, masks, dilation_ratio=dilation_ratio)

    frames = list(map_pairs(pairs, count, problems))
    foreign = Counter(label_id for frame in frames for label_id in frame.foreign_ids)
    if foreign and not any(frame.empty or len(frame.scores) for frame in frames):
        ids = ", ".join(map(str, sorted(foreign)))
        where = f"all {foreign.total()} masks have {ids}"
        problems.detections.add("no class with instances", where)
        raise_all(problems)
    measured = cityscapes_metrics(frames, dilation_ratio=dilation_ratio)
    if not any(measured.objects.values()):
        where = f"none of {len(frames)} frames has an object of at least {MIN_OBJECT_PX} pixels"
        problems.truth.add("no objects", where)
        raise_all(problems)
    return measured


def _list_truth(folder: str, problems: Problems) -> dict[str, list[str]]:
    files = storage.list_files(folder, suffix=TRUTH_SUFFIX, recursive=True)
    by_frame: dict[str, list[str]] = defaultdict(list)
    for uri in files:
        by_frame[file_name(uri).removesuffix(TRUTH_SUFFIX)].append(uri)
    if not files:
        where = f"{describe_folder(folder)}; none is *{TRUTH_SUFFIX}"
        problems.add("no ground truth in the folder", where)
    return by_frame


def _list_submission(folder: str, problems: Problems) -> dict[str, list[str]]:
    files = storage.list_files(folder, suffix=".txt", recursive=True)
    by_frame: dict[str, list[str]] = defaultdict(list)
    for uri in files:
        frame = parse_frame(uri)
        if frame is None:
            problems.add("no frame in the file name", file_name(uri))
        else:
            by_frame[frame].append(uri)
    if not files:
        problems.add("no submission in the folder", f"{describe_folder(folder)}; none is *.txt")
    return by_frame


def _read_instance_map(pair: Pair, problems: Problems) -> NDArray[np.uint16] | None:
    name = file_name(pair.truth)
    pixels = read_gray(pair.truth, problems, where=name, palette=False)
    if pixels is None:
        return None
    if pixels.dtype != np.uint16:
        where = f"{name}: {pixels.dtype}, values up to {pixels.max()}"
        problems.add("instance map is not 16-bit", where)
        return None
    instance_map = pixels.astype(np.uint16)
    unknown = find_unknown_ids(instance_map)
    if unknown:
        problems.add("unknown instance id", f"{name}: {', '.join(map(str, unknown[:5]))}")
        return None
    return instance_map


class _Line(NamedTuple):
    """One line of a frame's txt."""

    where: str
    mask: str
    label_id: int
    score: float


def _read_lines(txt: str, root: str, problems: Problems, *, sums: Mapping[str, str]) -> list[_Line]:
    name = file_name(txt)
    try:
        data = storage.read_bytes(txt)
        checksums.check(txt, data, sums)
        text = decode_text(data)
    except (StorageError, UnicodeDecodeError) as error:
        problems.add("unreadable file", f"{name}: {error}")
        return []
    lines: list[_Line] = []
    seen: set[str] = set()
    for number, fields in enumerate(map(str.split, text.splitlines()), start=1):
        where = f"{name}, line {number}"
        line = _parse_line(fields, where, txt, root, problems) if fields else None
        if line is not None and line.mask in seen:
            problems.add("mask used twice", f"{line.where}: {fields[0]}")
        elif line is not None:
            seen.add(line.mask)
            lines.append(line)
    return lines


def _parse_line(
    fields: list[str], where: str, txt: str, root: str, problems: Problems
) -> _Line | None:
    class_id, score = (
        (_parse_float(field) for field in fields[1:3]) if len(fields) == 3 else (None, None)
    )
    if class_id is None or score is None:
        problems.add("malformed line", f"{where}: {show_value(' '.join(fields))}")
        return None
    if not math.isfinite(score):
        problems.add("score is not finite", f"{where}: {score}")
        return None
    if class_id not in _LABEL_IDS:
        problems.add("unknown class id", f"{where}: {fields[1]}")
        return None
    base = storage.absolute(root)
    inside = posixpath.dirname(txt.removeprefix(base).lstrip("/"))
    path = posixpath.normpath(posixpath.join(inside, fields[0]))
    if path.startswith(("/", "../")):
        problems.add("mask path outside the submission", f"{where}: {show_value(fields[0])}")
        return None
    return _Line(where, storage.join(base, path), int(class_id), score)


def _parse_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_masks(
    lines: list[_Line], size_hw: tuple[int, ...], problems: Problems
) -> Iterator[FoundMask]:
    """Yield all valid masks."""
    for line in lines:
        where = f"{line.where}: {file_name(line.mask)}"
        pixels = read_gray(line.mask, problems, where=where, palette=False)
        if pixels is None:
            continue
        if pixels.shape == size_hw:
            yield FoundMask(line.label_id, line.score, pixels != 0)
        else:
            sizes = "{} x {}, the frame has {} x {}".format(*pixels.shape, *size_hw)
            problems.add("wrong mask size", f"{line.where}: {sizes}")
