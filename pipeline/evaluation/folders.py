"""Evaluate two folders image by image: pair files by name and measure the pairs in threads.

Missing files and problems of any file are collected over all images and reported in one error.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.data.label_png import LabelError, read_header, read_values
from pipeline.data.prefetch import prefetch
from pipeline.errors import StorageError
from pipeline.evaluation.problems import Problems, raise_all
from pipeline.progress import log_progress
from pipeline.text import format_count

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

CITYSCAPES_FRAME = re.compile(r"[^_/]+_\d{6}_\d{6}")
"""Start of the name of every file that belongs to a Cityscapes frame."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of one image in both folders."""

    key: str
    """Name of the image in both."""
    truth: str
    detections: str


class FolderProblems(NamedTuple):
    """Problems of both folders."""

    truth: Problems
    detections: Problems

    @classmethod
    def of(cls, truth: str, detections: str) -> "FolderProblems":
        """Start without problems."""
        return cls(Problems(truth), Problems(detections))


def file_name(uri: str) -> str:
    """Return the last part of a path or URI."""
    return uri.rsplit("/", 1)[-1]


def parse_frame(uri: str) -> str | None:
    """Parse the Cityscapes frame that a file belongs to from its name."""
    found = CITYSCAPES_FRAME.match(file_name(uri))
    return found[0] if found else None


def describe_folder(folder: str) -> str:
    """Say what a folder holds instead of the expected files."""
    if not storage.exists(folder):
        return "it does not exist"
    files = storage.list_files(folder, recursive=True)
    return f"{len(files)} files" + (f", such as {file_name(files[0])}" if files else "")


def pair_files(
    truth: Mapping[str, list[str]], detections: Mapping[str, list[str]], problems: FolderProblems
) -> list[Pair]:
    """Pair the files of both folders by image.

    Args:
        truth: files by image.
        detections: files by image.
        problems: images with several files, or with files in one folder only, are added here.
    """
    for folder, files in zip(problems, (truth, detections), strict=True):
        for key in sorted(key for key, found in files.items() if len(found) > 1):
            names = ", ".join(map(file_name, files[key]))
            folder.add("several files for one frame", f"{key}: {names:.120}")
    if truth and detections:
        for key in sorted(truth.keys() - detections.keys()):
            problems.detections.add("frame without detections", key)
        for key in sorted(detections.keys() - truth.keys()):
            problems.detections.add("frame not in the truth", file_name(detections[key][0]))
    both = sorted(truth.keys() & detections.keys())
    return [Pair(key, truth[key][0], detections[key][0]) for key in both]


def map_pairs(
    pairs: Sequence[Pair],
    measure: Callable[[Pair, FolderProblems], Result | None],
    problems: FolderProblems,
) -> Iterator[Result]:
    """Measure pairs in threads, and yield the results in the order of the pairs.

    Args:
        pairs: from `pair_files`.
        measure: adds the problems of a pair's files to its second argument; None has no result.
        problems: all problems known before.

    Raises:
        DatasetError: after the last pair, if there are any problems.
    """

    def run(pair: Pair) -> tuple[Result | None, FolderProblems]:
        of_pair = FolderProblems.of(problems.truth.file, problems.detections.file)
        return measure(pair, of_pair), of_pair

    threads = os.cpu_count() or 1
    done = prefetch((pair for pair in pairs), run, max_pending=2 * threads, threads=threads)
    for result, of_pair in log_progress(done, "evaluate", total=len(pairs)):
        problems.truth.merge(of_pair.truth)
        problems.detections.merge(of_pair.detections)
        if result is not None:
            yield result
    for each in problems:
        if each.palettes:
            _log.warning(
                "evaluate: the indices of %s in %s are taken as classes, not the colors",
                *(format_count(each.palettes, "palette"), each.file),
            )
    raise_all(problems)


def read_gray(
    uri: str, problems: Problems, *, where: str, palette: bool
) -> NDArray[np.generic] | None:
    """Read a PNG with one value per pixel; None if it has a problem.

    Args:
        uri: the file.
        problems: a missing or invalid file is added here.
        where: start of the description of such a problem.
        palette: whether to accept images with a palette, and read the indices.

    Returns:
        (H, W): bool for 1 bit, uint8 for 2, 4 and 8 bits, uint16 for 16 bits.
    """
    try:
        data = storage.read_bytes(uri)
    except StorageError as error:
        problems.add("unreadable image", f"{where}: {error}")
        return None
    try:
        values = read_values(data, bits=None, max_pixels=None, take_palette=palette)
    except LabelError as error:
        problems.add("unreadable image", f"{where}: {error} ({len(data)} bytes)")
        return None
    problems.palettes += read_header(data).has_palette
    return values
