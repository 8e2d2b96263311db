"""Images and label files that belong together by their names, as two folders hold them."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipeline.data import dataset_files
from pipeline.data.label_png import LabelError, read_header
from pipeline.data.manifest import Category
from pipeline.data.problems import Problem, problem_of
from pipeline.data.source_index import File, LabelRules, Listed, Listing, Rules
from pipeline.errors import DatasetError

_log = logging.getLogger(__name__)

_IMAGES, _LABELS = "images", "labels"
"""Mounts."""

_HEADER_BYTES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Two folders, and how names in them end."""

    images: str
    """Place of a folder."""
    labels: str
    """Place of a folder."""
    image_endings: tuple[str, ...]
    """Other files are left alone."""
    label_endings: tuple[str, ...]
    """Of several labels of one image, the first of these is taken."""


def list_pairs(
    pairs: Pairs, *, rules: Rules, categories: tuple[Category, ...], title: str, where: str
) -> Listing:
    """List the images of two folders with their labels.

    Args:
        pairs: the folders.
        rules: what the values of a label mean.
        categories: the classes.
        title: what is read, in words.
        where: where users get it.

    Raises:
        DatasetError: nothing is there, nothing belongs together, or the folders are swapped.
        StorageError: a folder cannot be read.
    """
    _log.info("ingest: listing %s and %s", pairs.images, pairs.labels)
    images, labels = (dataset_files.list_files(place) for place in (pairs.images, pairs.labels))
    listed, problems = paired(
        images, labels, image_endings=pairs.image_endings, label_endings=pairs.label_endings
    )
    both = [
        each for each in listed if each.image.name in images and each.entry["label_name"] in labels
    ]
    if not both:
        raise DatasetError(_nothing_fits(pairs, images, labels, where))
    if isinstance(rules, LabelRules):
        _check_order(pairs, both[0])
    return Listing(
        rules=rules,
        categories=categories,
        images=listed,
        mounts={_IMAGES: pairs.images, _LABELS: pairs.labels},
        problems=problems,
        listed_images=len(listed),
        listed_annotations=None,
        title=title,
        source=f"files sha256:{_digest(listed, rules, categories)}",
        where=where,
    )


def paired(
    images: dict[str, int],
    labels: dict[str, int],
    *,
    image_endings: Sequence[str],
    label_endings: Sequence[str],
) -> tuple[list[Listed], list[Problem]]:
    """Pair files whose names are equal before the ending.

    An image without a label, or a label without an image, is listed too: with the name that the
    other file would have, so that it is missed where files are read, and found once it is there.
    Ids count from 1 by name.

    Args:
        images: sizes of the image files by name below their folder.
        labels: the same of label files.
        image_endings: of image files.
        label_endings: of label files; of several for one image, the first of these is taken.
    """
    image_of, twice = _by_stem(images, image_endings)
    label_of, _ = _by_stem(labels, label_endings)
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
            # A label that is drawn anew has another size, nearly always: then its shard is made
            # anew.
            "label_bytes": labels.get(label, 0),
        }
        listed.append(Listed(entry, File(_IMAGES, image), File(_LABELS, label)))
    problems = [
        problem_of("image_twice", f"beside {image_of[stem]}", {"file_name": name})
        for stem, name in twice
    ]
    return listed, problems


def warn_of_missing(listing: Listing, split: str, official: int) -> None:
    """Say so where a split has fewer images than its makers hand out."""
    if listing.listed_images < official:
        _log.warning(
            "ingest: %s has %d images here, officially %d: is everything downloaded and unpacked?",
            *(split, listing.listed_images, official),
        )


def _by_stem(
    files: dict[str, int], endings: Sequence[str]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Give the file of each stem, and stems with files that came too late."""
    found: dict[str, str] = {}
    late = []
    for ending in endings:
        for name in files:
            if not name.lower().endswith(ending.lower()):
                continue
            stem = name[: len(name) - len(ending)]
            if stem in found:
                late.append((stem, name))
            else:
                found[stem] = name
    return found, late


def _nothing_fits(pairs: Pairs, images: dict[str, int], labels: dict[str, int], where: str) -> str:
    shown = [
        f"{place} has {', '.join(list(files)[:3]) or 'no file'}"
        for place, files in ((pairs.images, images), (pairs.labels, labels))
    ]
    wanted = " or ".join(f"NAME{ending}" for ending in pairs.label_endings)
    return (
        f"no image has a label: {'; '.join(shown)}. To NAME{pairs.image_endings[0]} among the "
        f"images belongs {wanted} among the labels. Are the two folders swapped, or is one of "
        f"another data set? {where}"
    )


def _check_order(pairs: Pairs, first: Listed) -> None:
    """Look at one pair: a colored label beside a gray image tells that the folders are swapped."""
    with dataset_files.Files() as files:
        image, label = (
            files.read(place, name, most_bytes=_HEADER_BYTES).data or b""
            for place, name in (
                (pairs.images, first.image.name),
                (pairs.labels, first.entry["label_name"]),
            )
        )
    if _is_map(image) and not _is_map(label):
        raise DatasetError(
            f"{first.image.name} in {pairs.images} is a gray or palette PNG and "
            f"{first.entry['label_name']} in {pairs.labels} is a photo: the folders of images and "
            "labels are swapped"
        )


def _is_map(data: bytes) -> bool:
    try:
        header = read_header(data)
    except LabelError:
        return False
    return header.is_gray or header.has_palette


def _digest(listed: list[Listed], rules: Rules, categories: tuple[Category, ...]) -> str:
    meaning = [asdict(rules), [asdict(each) for each in categories]]
    entries = [each.entry for each in listed]
    return hashlib.sha256(json.dumps([meaning, entries]).encode()).hexdigest()
