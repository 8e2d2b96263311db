"""Pair the images and label files of two folders by name."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

import numpy as np

from pipeline.data import dataset_files
from pipeline.data.label_png import LabelError, read_values
from pipeline.data.manifest import Category
from pipeline.data.problems import Problem, make_problem
from pipeline.data.source_index import (
    UNKNOWN_VALUE,
    File,
    LabelRules,
    Rules,
    SourceImage,
    SourceIndex,
)
from pipeline.errors import DatasetError
from pipeline.text import format_counts

_log = logging.getLogger(__name__)

_IMAGES, _LABELS = "images", "labels"
"""Mount names."""

_LABEL_BYTES, _LABEL_PIXELS = 2**26, 2**26
"""Limits of the one label that is read to find swapped folders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Two folders and the endings of their file names."""

    images: str
    labels: str
    image_endings: tuple[str, ...]
    """Other files are only counted."""
    label_endings: tuple[str, ...]
    """If an image has several labels, the first of these endings wins."""

    @property
    def lower_image_endings(self) -> tuple[str, ...]:
        """The endings of images, whose case does not matter."""
        return tuple(map(str.lower, self.image_endings))


def list_pairs(
    pairs: Pairs, *, rules: Rules, categories: tuple[Category, ...], title: str, download: str
) -> SourceIndex:
    """List the images of two folders with their labels.

    Args:
        pairs: the folders.
        rules: the meaning of label values.
        categories: the classes.
        title: description of the source.
        download: where users get missing files.

    Raises:
        DatasetError: no image has a label, or the folders are swapped.
        StorageError: a folder cannot be read.
    """
    _log.info("ingest: listing %s and %s", pairs.images, pairs.labels)
    images, labels = map(dataset_files.list_files, (pairs.images, pairs.labels))
    listed, problems = pair_files(
        images, labels, image_endings=pairs.image_endings, label_endings=pairs.label_endings
    )
    others = [name for name in images if not name.lower().endswith(pairs.lower_image_endings)]
    if others:
        counts = format_counts(PurePosixPath(name).suffix.lower() or "no ending" for name in others)
        _log.warning("ingest: not read in %s: %s (such as %s)", pairs.images, counts, others[0])
    both = [
        each for each in listed if each.image.name in images and each.entry["label_name"] in labels
    ]
    if not both:
        raise DatasetError(_describe_mismatch(pairs, images, labels, download))
    if isinstance(rules, LabelRules):
        _refuse_swapped_folders(pairs, both[0], rules)
    return SourceIndex(
        rules=rules,
        categories=categories,
        images=listed,
        mounts={_IMAGES: pairs.images, _LABELS: pairs.labels},
        problems=problems,
        listed_images=len(listed),
        listed_annotations=None,
        title=title,
        source=f"files sha256:{_hash(listed, rules, categories)}",
        download=download,
    )


def pair_files(
    images: dict[str, int],
    labels: dict[str, int],
    *,
    image_endings: Sequence[str],
    label_endings: Sequence[str],
) -> tuple[list[SourceImage], list[Problem]]:
    """Pair files whose names are equal except for the ending.

    An image without a label, or a label without an image, is listed with the expected name of the
    other file, so that it is reported as missing when files are read. Ids count from 1 by name.

    Args:
        images: sizes of image files by name below their folder.
        labels: the same for label files.
        image_endings: of image files.
        label_endings: of label files; if an image has several, the first of these wins.
    """
    image_of, duplicates = _group_by_stem(images, image_endings)
    label_of, _ = _group_by_stem(labels, label_endings)
    endings = Counter(name[len(stem) :] for stem, name in image_of.items())
    usual = endings.most_common(1)[0][0] if endings else image_endings[0]
    listed = []
    for number, stem in enumerate(sorted(image_of.keys() | label_of.keys()), start=1):
        image = image_of.get(stem, stem + usual)
        label = label_of.get(stem, stem + label_endings[0])
        entry = {
            "id": number,
            "file_name": image,
            "label_name": label,
            # A label that was edited nearly always has another size, so its shard is made again.
            "label_bytes": labels.get(label, 0),
        }
        listed.append(SourceImage(entry, File(_IMAGES, image), File(_LABELS, label)))
    problems = [
        make_problem("image_twice", f"beside {image_of[stem]}", {"file_name": name})
        for stem, name in duplicates
    ]
    return listed, problems


def warn_if_incomplete(index: SourceIndex, split: str, official: int) -> None:
    """Warn if a split has fewer images than the official one."""
    if index.listed_images < official:
        _log.warning(
            "ingest: %s has %d of the official %d images; is the download complete?",
            *(split, index.listed_images, official),
        )


def make_missing_error(root: str, folders: str, *, download: str) -> DatasetError:
    """Make the error for folders that are not under root."""
    entries = ", ".join(dataset_files.list_entries(root)[:10]) or "no files"
    return DatasetError(
        f"{folders}: not in {root} or a zip there ({root} has {entries}); choose another --split "
        f"or --root. {download}"
    )


def _group_by_stem(
    files: dict[str, int], endings: Sequence[str]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the first file of each stem, and stem and name of all further files."""
    first: dict[str, str] = {}
    duplicates = []
    for ending in endings:
        for name in files:
            if not name.lower().endswith(ending.lower()):
                continue
            stem = name[: len(name) - len(ending)]
            if stem in first:
                duplicates.append((stem, name))
            else:
                first[stem] = name
    return first, duplicates


def _describe_mismatch(
    pairs: Pairs, images: dict[str, int], labels: dict[str, int], download: str
) -> str:
    shown = [
        f"{folder} has {', '.join(list(files)[:3]) or 'no file'}"
        for folder, files in ((pairs.images, images), (pairs.labels, labels))
    ]
    expected = " or ".join(f"NAME{ending}" for ending in pairs.label_endings)
    return (
        f"no image has a label: {'; '.join(shown)}. The label of NAME{pairs.image_endings[0]} is "
        f"{expected}. Are the two folders swapped, or from different data sets? {download}"
    )


def _refuse_swapped_folders(pairs: Pairs, first: SourceImage, rules: LabelRules) -> None:
    """Check one pair: the folders are swapped if only the image is a label map of the classes.

    A gray image beside a color label proves nothing: X-rays are gray, and masks are often saved
    with three channels.
    """
    with dataset_files.FileReader() as reader:
        image, label = (
            reader.read(folder, name, max_bytes=_LABEL_BYTES).data or b""
            for folder, name in (
                (pairs.images, first.image.name),
                (pairs.labels, first.entry["label_name"]),
            )
        )
    if _is_map(image, rules) and not _is_map(label, rules):
        raise DatasetError(
            f"{first.image.name} in {pairs.images} is a label map (each pixel is of a class or "
            f"void) and {first.entry['label_name']} in {pairs.labels} is not: the folders are "
            "swapped. Exchange images and labels"
        )


def _is_map(data: bytes, rules: LabelRules) -> bool:
    try:
        values = read_values(data, bits=8, max_pixels=_LABEL_PIXELS, take_palette=True)
    except LabelError:
        return False
    return all(rules.index_of_value[value] != UNKNOWN_VALUE for value in np.unique(values))


def _hash(listed: list[SourceImage], rules: Rules, categories: tuple[Category, ...]) -> str:
    meaning = [asdict(rules), [asdict(each) for each in categories]]
    entries = [each.entry for each in listed]
    return hashlib.sha256(json.dumps([meaning, entries]).encode()).hexdigest()
