"""COCO: a folder of images and one JSON with images, annotations and categories.

This module checks what needs the whole file: keys and types of every entry, duplicate ids, unknown
ids, names that leave the image folder. Many processes check each image and its annotations where
its row is made (pipeline/data/validate_image.py).
"""

import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from posixpath import normpath
from types import MappingProxyType
from typing import NamedTuple

from pipeline import storage
from pipeline.data import dataset_files
from pipeline.data.annotation_rules import DEFAULTS
from pipeline.data.dataset_files import describe_unsafe_name
from pipeline.data.ingest_config import CocoIngest
from pipeline.data.json_entries import ChosenEntries, TextEntries, advise, parse_unique
from pipeline.data.manifest import Category
from pipeline.data.problems import (
    EXAMPLES,
    INT64,
    Entry,
    Problem,
    is_id,
    is_name,
    is_side,
    make_problem,
    shorten,
)
from pipeline.data.source_index import (
    AnnotationRules,
    File,
    SourceImage,
    SourceIndex,
    find_unlisted,
)
from pipeline.errors import DatasetError
from pipeline.text import format_count, format_names

Keys = Mapping[str, Callable[..., bool]]
"""Keys that an entry must have, and the check of each value."""

_log = logging.getLogger(__name__)

_DOWNLOAD = (
    "COCO itself is at cocodataset.org: annotations_trainval2017.zip, train2017.zip, val2017.zip; "
    "the zips need not be unpacked"
)

_IMAGES = "images"

_MAX_PATH_BYTES = 1024
_MAX_PART_BYTES = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoAnnotations:
    """A checked annotation file and its problems."""

    categories: tuple[Category, ...]
    images: list[Entry]
    """Valid image entries by id, each with its annotations by id, a sequence, under
    "annotations"."""
    problems: list[Problem]
    digest: str
    """SHA-256 of the file."""
    listed_images: int
    """Entries in the file, valid or not."""
    listed_annotations: int


def list_coco(config: CocoIngest) -> SourceIndex:
    """List a data set in the COCO layout.

    Raises:
        DatasetError: something is missing, or the file is not an annotation file.
        StorageError: a file cannot be read.
    """
    annotations, images = _find_files(config)
    _log.info("ingest: reading %s", annotations)
    index = build_index(
        read_annotations(annotations),
        mounts={_IMAGES: images},
        images=lambda entry: File(_IMAGES, entry["file_name"]),
        title=f"{annotations.rsplit('/', 1)[-1]} and its images",
        download=_DOWNLOAD,
    )
    if unlisted := find_unlisted(index, _IMAGES):
        count, names = format_count(len(unlisted), "photo"), format_names(unlisted, limit=EXAMPLES)
        _log.warning("ingest: %s in %s without an entry, left out: %s", count, images, names)
    return index


def read_annotations(uri: str) -> CocoAnnotations:
    """Read and check an annotation file.

    Raises:
        DatasetError: it is not a COCO annotation file.
        StorageError: it cannot be read.
    """
    top, digest = read_lists(uri)
    _refuse_other_formats(top, uri)
    return check_entries(top, digest=digest)


def read_lists(
    uri: str, *, annotation_defaults: Mapping[str, object] = MappingProxyType({})
) -> tuple[Entry, str]:
    """Read a file with lists of images, annotations and categories, and hash it.

    Args:
        uri: of the file.
        annotation_defaults: keys that an annotation gets if it lacks them.

    Raises:
        DatasetError: it has no such lists.
        StorageError: it cannot be read.
    """
    data = dataset_files.read_file(uri)
    digest = hashlib.sha256(data).hexdigest()
    try:
        top = parse_unique(data, entries="annotations", defaults=annotation_defaults)
    except ValueError as error:
        reason = f"{uri} is not readable as JSON ({shorten(str(error))})"
        raise DatasetError(reason + advise(error)) from error
    return _check_top(top, uri), digest


def check_entries(
    top: Entry,
    *,
    digest: str,
    image_keys: Keys | None = None,
    category_keys: Keys | None = None,
) -> CocoAnnotations:
    """Check every entry.

    Args:
        top: from read_lists; the lists may hold anything.
        digest: hash of the file.
        image_keys: required keys of an image besides COCO's.
        category_keys: required keys of a category besides COCO's.
    """
    problems: list[Problem] = []
    categories = _check_categories(
        top["categories"], problems, {**_CATEGORY_KEYS, **(category_keys or {})}
    )
    images = _check_images(top["images"], problems, {**_IMAGE_KEYS, **(image_keys or {})})
    refused = {problem.image_id for problem in problems} - images.keys() - {None}
    known = _KnownIds(images, {each.category_id for each in categories}, refused)
    _attach_annotations(top["annotations"], known, problems)
    ordered = [images[image_id] for image_id in sorted(images)]
    return CocoAnnotations(
        categories=categories,
        images=ordered,
        problems=problems,
        digest=digest,
        listed_images=len(top["images"]),
        listed_annotations=len(top["annotations"]),
    )


def build_index(
    coco: CocoAnnotations,
    *,
    mounts: dict[str, str],
    images: Callable[[Entry], File],
    title: str,
    download: str,
    federated: bool = False,
) -> SourceIndex:
    """Make the index of an annotation file.

    Args:
        coco: the annotations; its images move into the index.
        mounts: URI by mount name.
        images: returns the file of an image entry.
        title: description of the source.
        download: where users get missing files.
        federated: image entries have LVIS's lists of categories.
    """
    index = {each.category_id: each.category_index for each in coco.categories}
    return SourceIndex(
        rules=AnnotationRules(category_index=index, federated=federated),
        categories=coco.categories,
        images=[SourceImage(entry, images(entry)) for entry in coco.images],
        mounts=mounts,
        problems=coco.problems,
        listed_images=coco.listed_images,
        listed_annotations=coco.listed_annotations,
        title=title,
        source=f"annotations sha256:{coco.digest}",
        download=download,
    )


def _find_files(config: CocoIngest) -> tuple[str, str]:
    """Find the annotation file and the image folder, or report all that is missing."""
    name = f"instances_{config.split}.json"
    annotations = config.annotations or dataset_files.find_file(config.root, f"annotations/{name}")
    images = config.images or dataset_files.find_folder(config.root, config.split)
    wrong = []
    if not (annotations and images) and not dataset_files.list_entries(config.root):
        raise DatasetError(
            f"{config.root} does not exist or is empty; name the data set's folder with --root"
        )
    if not annotations or not dataset_files.exists(annotations):
        folder = storage.join(config.root, "annotations")
        others = [each for each in dataset_files.list_entries(folder) if each.endswith(".json")]
        wrong.append(
            f"{config.annotations or storage.join(folder, name)} does not exist ({folder} has "
            f"{', '.join(others[:10]) or 'no annotation file'}); choose another --split, or name "
            "the file with --annotations"
        )
    if not images or not dataset_files.exists(images):
        folder = config.images or storage.join(config.root, config.split)
        wrong.append(f"{folder} does not exist; name the folder of the images with --images")
    if wrong or not annotations or not images:
        raise DatasetError("\n".join([*wrong, _DOWNLOAD]))
    return annotations, images


def _check_top(top: object, uri: str) -> Entry:
    if not isinstance(top, dict):
        raise DatasetError(
            f"{uri} is not a COCO annotation file: it holds {_type_name(top)}, not an object with "
            "images, annotations and categories (a list is a results file); name another with "
            "--annotations"
        )
    wrong = [
        f"{key} is {'missing' if key not in top else _type_name(top[key])}"
        for key in ("images", "annotations", "categories")
        if not isinstance(top.get(key), list | TextEntries)
    ]
    if wrong:
        raise DatasetError(
            f"{uri} is not a COCO annotation file: {', '.join(wrong)}; each must be a list. "
            "Name another file with --annotations"
        )
    empty = [key for key in ("images", "categories") if not top[key]]
    if empty:
        raise DatasetError(
            f"{uri} has no {' and no '.join(empty)}; name another file with --annotations"
        )
    return top


def _refuse_other_formats(top: Entry, uri: str) -> None:
    """Detect other formats early; otherwise every annotation is reported as invalid."""
    first = {key: (top[key] or [None])[0] for key in ("images", "annotations")}
    marks = [
        ("images", "neg_category_ids", "an LVIS file; use: python jobs/ingest.py lvis"),
        ("annotations", "segments_info", "a panoptic file; use the instances file"),
    ]
    for key, mark, advice in marks:
        entry = first[key]
        if isinstance(entry, dict) and mark in entry:
            raise DatasetError(f"{uri} is {advice} ({key} have {mark})")


def _check_categories(
    entries: list[object], problems: list[Problem], keys: Keys
) -> tuple[Category, ...]:
    """Number the valid categories by ascending id."""
    names: dict[int, str] = {}
    for entry in entries:
        wrong = _find_wrong_keys(entry, keys)
        if not wrong and isinstance(entry, dict) and entry["id"] in names:
            wrong = f"id {entry['id']} is used by {names[entry['id']]!r} already"
        if wrong or not isinstance(entry, dict):
            shown = entry.get("name") if isinstance(entry, dict) else entry
            problems.append(
                Problem(
                    kind="category_entry",
                    reason=f"category {shorten(repr(shown))}: {wrong}",
                    raw=json.dumps(entry),
                )
            )
        else:
            names[entry["id"]] = entry["name"]
    return tuple(
        Category(category_id=category_id, category_index=index, name=names[category_id])
        for index, category_id in enumerate(sorted(names))
    )


def _check_images(entries: list[object], problems: list[Problem], keys: Keys) -> dict[int, Entry]:
    images: dict[int, Entry] = {}
    owners: dict[str, int] = {}
    for index, entry in enumerate(entries):
        wrong = _find_wrong_keys(entry, keys)
        if wrong or not isinstance(entry, dict):
            reason = _name_entry(index, entry, "images") + wrong
            problems.append(make_problem("image_entry", reason, entry))
        elif entry["id"] in images:
            first = images[entry["id"]]["file_name"]
            reason = f"id {entry['id']} is used by {first} already"
            problems.append(make_problem("duplicate_image_id", reason, entry))
        elif reason := describe_unsafe_name(entry["file_name"]):
            problems.append(make_problem("path_outside_root", reason, entry))
        elif (owner := owners.setdefault(normpath(entry["file_name"]), entry["id"])) != entry["id"]:
            # Each entry has a part of the objects, and the others would be learned as background.
            problems.append(make_problem("file_twice", f"it is the file of image {owner}", entry))
        else:
            # The key is ours; some exporters use it otherwise.
            images[entry["id"]] = {**entry, "annotations": []}
    return images


class _KnownIds(NamedTuple):
    """The ids that annotations may refer to."""

    images: dict[int, Entry]
    category_ids: set[int]
    refused: set[int | None]
    """Ids of images whose own entries have problems."""


def _attach_annotations(
    entries: Sequence[object], known: _KnownIds, problems: list[Problem]
) -> None:
    """Give images their valid annotations, in the order of their ids."""
    ids = array("q", bytes(8 * len(entries)))
    indices = {image_id: array("q") for image_id in known.images}
    for index, entry, kind, reason in _check_annotations(entries, known):
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        image = known.images.get(image_id) if isinstance(image_id, int) else None
        if kind:
            problems.append(make_problem(kind, reason, entry, image=image or {}))
        elif isinstance(entry, dict):
            ids[index] = entry["id"]
            indices[entry["image_id"]].append(index)
    for image_id, image in known.images.items():
        ordered = sorted(indices[image_id], key=ids.__getitem__)
        image["annotations"] = ChosenEntries(entries, ordered)


def _check_annotations(
    entries: Sequence[object], known: _KnownIds
) -> Iterator[tuple[int, object, str, str]]:
    """Yield index and annotation with kind and reason of every problem, or "" if it is valid."""
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        wrong = _find_wrong_keys(entry, _ANNOTATION_KEYS)
        if wrong or not isinstance(entry, dict):
            reason = _name_entry(index, entry, "annotations") + wrong
            yield index, entry, "annotation_entry", reason
            continue
        reasons = []
        if entry["id"] in seen:
            reasons.append(("duplicate_annotation_id", f"id {entry['id']} is used already"))
        if entry["image_id"] not in known.images:
            why = ", whose entry is invalid" if entry["image_id"] in known.refused else ""
            reasons.append(("unknown_image", f"image_id is {entry['image_id']}{why}"))
        if entry["category_id"] not in known.category_ids:
            reasons.append(("unknown_category", f"category_id is {entry['category_id']}"))
        seen.add(entry["id"])
        for kind, reason in reasons or [("", "")]:
            yield index, entry, kind, reason


def _name_entry(index: int, entry: object, key: str) -> str:
    """Name an entry without an id by its place in its list."""
    return "" if isinstance(entry, dict) and is_id(entry.get("id")) else f"entry {index} of {key}: "


def _find_wrong_keys(entry: object, keys: Keys) -> str:
    """List the missing keys and wrong values of an entry; "" if it is valid."""
    if not isinstance(entry, dict):
        return f"it is {_type_name(entry)}, not an object"
    missing = [key for key in keys if key not in entry and key not in DEFAULTS]
    wrong = [f"{', '.join(missing)} missing"] if missing else []
    wrong += [
        f"{key} is {shorten(repr(entry[key]), 40)}{_note_limit(entry[key])}"
        for key, is_valid in keys.items()
        if key in entry and not is_valid(entry[key])
    ]
    return "; ".join(wrong)


def _note_limit(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return ", which must be written without a point"
    is_too_large = isinstance(value, int) and value not in INT64
    return ", which does not fit into 64 bits" if is_too_large else ""


def _is_file_name(value: object) -> bool:
    # Names that no file system accepts must not look like a failing disk.
    return (
        is_name(value)
        and len(value.encode()) <= _MAX_PATH_BYTES
        and all(len(part.encode()) <= _MAX_PART_BYTES for part in value.split("/"))
    )


def _is_number(value: object) -> bool:
    # NaN and infinity pass: they are a kind of problem of their own.
    return is_id(value) or isinstance(value, float)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_area(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and not value < 0


def _is_flag(value: object) -> bool:
    return value in (0, 1) and isinstance(value, int)


def _is_segmentation(value: object) -> bool:
    # The workers check the numbers, which are many.
    if isinstance(value, list):
        return all(isinstance(part, list) for part in value)
    return isinstance(value, dict) and isinstance(value.get("counts"), list | str)


_CATEGORY_KEYS: Keys = {"id": is_id, "name": is_name}
_IMAGE_KEYS: Keys = {"id": is_id, "file_name": _is_file_name, "height": is_side, "width": is_side}
_ANNOTATION_KEYS: Keys = {
    "id": is_id,
    "image_id": is_id,
    "category_id": is_id,
    "bbox": _is_box,
    "segmentation": _is_segmentation,
    "area": _is_area,
    "iscrowd": _is_flag,
}


def _type_name(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        type(None): "null",
        bool: "a boolean",
    }
    return names.get(type(value), "a number")
