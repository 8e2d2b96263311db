"""Two folders that belong together, image by image: paired by name, measured in threads, in order.

What has no partner, and what is wrong with any file of either, is gathered over all images and
told in one error at the end.
"""

import io
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import storage
from pipeline.data.prefetch import ahead
from pipeline.errors import StorageError
from pipeline.evaluation.problems import Faults, raise_all

Measured = TypeVar("Measured")

CITYSCAPES_FRAME = re.compile(r"[^_/]+_\d{6}_\d{6}")
"""How names of files that belong to a frame of Cityscapes start."""

_LOG_EVERY_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of one image in both folders."""

    key: str
    """What the image is called in both."""
    truth: str
    detections: str


class BrokenImageError(ValueError):
    """An image file that cannot be used, in a few words."""


def file_name(uri: str) -> str:
    """Give the last part of a path or URI."""
    return uri.rsplit("/", 1)[-1]


def frame_of(uri: str) -> str | None:
    """Give the frame of Cityscapes that a file belongs to by its name."""
    found = CITYSCAPES_FRAME.match(file_name(uri))
    return found[0] if found else None


def describe(folder: str) -> str:
    """Say what is in a folder where something else was looked for."""
    if not storage.exists(folder):
        return "it is not there"
    files = storage.list_files(folder, recursive=True)
    return f"{len(files)} files" + (f", such as {file_name(files[0])}" if files else "")


def pair_files(
    truth: Mapping[str, list[str]],
    detections: Mapping[str, list[str]],
    *,
    of_truth: Faults,
    of_detections: Faults,
) -> list[Pair]:
    """Pair files by what their images are called.

    Args:
        truth: files by key.
        detections: files by key.
        of_truth: keys with several files are added.
        of_detections: keys with several files are added, and those that only one side has.
    """
    for files, faults in ((truth, of_truth), (detections, of_detections)):
        for key in sorted(key for key, found in files.items() if len(found) > 1):
            names = ", ".join(map(file_name, files[key]))
            faults.add("several files of one frame", f"{key}: {names:.120}")
    if truth and detections:
        for key in sorted(truth.keys() - detections.keys()):
            of_detections.add("frame without detections", key)
        for key in sorted(detections.keys() - truth.keys()):
            of_detections.add("frame that the truth does not have", file_name(detections[key][0]))
    both = sorted(truth.keys() & detections.keys())
    return [Pair(key, truth[key][0], detections[key][0]) for key in both]


def measure_pairs(
    pairs: Iterable[Pair],
    measure: Callable[[Pair, Faults, Faults], Measured],
    *,
    of_truth: Faults,
    of_detections: Faults,
) -> Iterator[Measured]:
    """Measure each pair, several at a time; the results come in the order of the pairs.

    Args:
        pairs: what `pair_files` gives.
        measure: gets a pair and two places for the faults of its files; called in threads.
        of_truth: what is known to be wrong with the truth so far.
        of_detections: and with the detections.

    Raises:
        DatasetError: after the last pair, when something is wrong with the files, also with those
            that were looked at before this call.
    """
    pairs = list(pairs)

    def one(pair: Pair) -> tuple[Measured, Faults, Faults]:
        faults = Faults(of_truth.file), Faults(of_detections.file)
        return measure(pair, *faults), *faults

    threads = os.cpu_count() or 1
    told = time.perf_counter()
    results = ahead((pair for pair in pairs), one, most=2 * threads, threads=threads)
    for number, (result, truth, detections) in enumerate(results, start=1):
        of_truth.absorb(truth)
        of_detections.absorb(detections)
        if time.perf_counter() - told >= _LOG_EVERY_S:
            told = time.perf_counter()
            _log.info("evaluate %d/%d images", number, len(pairs))
        yield result
    raise_all([of_truth, of_detections])


def read_gray(uri: str, *, palette: bool) -> NDArray[np.generic]:
    """Read a PNG of one value a pixel.

    Args:
        uri: the file.
        palette: a picture of up to 256 colors is taken too, by the colors' indexes.

    Returns:
        (H, W): bool for 1 bit, uint8 for 8 bits, uint16 for 16 bits.

    Raises:
        BrokenImageError: it is not there, broken, or has several values a pixel.
    """
    try:
        data = storage.read_bytes(uri)
    except StorageError as error:
        raise BrokenImageError(str(error)) from error
    try:
        with warnings.catch_warnings():
            # Pillow's warning of large images; at twice that size it refuses by itself.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            pixels = np.asarray(image)
    except Exception as error:  # decoders raise what they like on broken files
        raise BrokenImageError(f"{error} ({len(data)} bytes)") from error
    if pixels.ndim != 2 or (image.mode == "P" and not palette):
        raise BrokenImageError(f"it is a picture in color ({image.mode}), not one value a pixel")
    # Old versions of Pillow give 32 bits for a PNG of 16.
    return pixels.astype(np.uint16) if image.mode == "I" else pixels
