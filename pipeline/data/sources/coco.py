"""COCO: a folder of images and one JSON with images, annotations and categories.

Here is checked what only the whole file can tell: keys and types of every entry, ids used twice,
ids that point nowhere, names that leave the image folder. What one image can tell by itself is
checked where its row is made (pipeline/data/validate_image.py), by many processes.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline import storage
from pipeline.data import dataset_files
from pipeline.data.dataset_files import leaves_folder
from pipeline.data.ingest_config import CocoIngest
from pipeline.data.manifest import Category
from pipeline.data.problems import INT64, Entry, Problem, is_id, is_name, problem_of, shortened
from pipeline.data.source_index import AnnotationRules, File, Listed, Listing
from pipeline.errors import DatasetError

Keys = Mapping[str, Callable[..., bool]]
"""Keys that an entry must have, and what tells whether a value is right."""

_log = logging.getLogger(__name__)

_WHERE = (
    "COCO itself comes from cocodataset.org: annotations_trainval2017.zip, train2017.zip, "
    "val2017.zip; no zip need be unpacked"
)

_IMAGES = "images"

_LONGEST_PATH = 1024
_LONGEST_PART = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoAnnotations:
    """What an annotation file says, in order of image id, and what is wrong with it."""

    categories: tuple[Category, ...]
    images: list[Entry]
    """Image entries as they came, each with its annotations, ordered by id, under "annotations"."""
    problems: list[Problem]
    digest: str
    """SHA-256 of the file."""
    listed_images: int
    """Entries in the file, sound or not."""
    listed_annotations: int


def list_coco(config: CocoIngest) -> Listing:
    """List a data set in the COCO layout.

    Raises:
        DatasetError: something of it is not there, or the annotation file is none.
        StorageError: it cannot be read.
    """
    annotations, images = _places(config)
    _log.info("ingest: reading %s", annotations)
    return listing_of(
        read_annotations(annotations),
        mounts={_IMAGES: images},
        images=lambda entry: File(_IMAGES, entry["file_name"]),
        title=f"{annotations.rsplit('/', 1)[-1]} and its images",
        where=_WHERE,
    )


def read_annotations(uri: str) -> CocoAnnotations:
    """Read and check an annotation file.

    Raises:
        DatasetError: it is no COCO annotation file at all.
        StorageError: it cannot be read.
    """
    top, digest = read_top(uri)
    _check_kind(top, uri)
    return checked(top, digest=digest)


def read_top(uri: str) -> tuple[Entry, str]:
    """Read a file that holds lists of images, annotations and categories, and hash it.

    Raises:
        DatasetError: it does not.
        StorageError: it cannot be read.
    """
    data = dataset_files.read_file(uri)
    digest = hashlib.sha256(data).hexdigest()
    try:
        top = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            f"{uri} is not readable as JSON ({shortened(str(error))}); is it cut off? Copy it again"
        ) from error
    return _check_top(top, uri), digest


def checked(
    top: Entry,
    *,
    digest: str,
    image_keys: Keys | None = None,
    category_keys: Keys | None = None,
) -> CocoAnnotations:
    """Check every entry.

    Args:
        top: what read_top gives; its lists may hold anything.
        digest: names its content.
        image_keys: what an image entry must hold beside COCO's keys.
        category_keys: what a category must hold beside COCO's keys.
    """
    problems: list[Problem] = []
    categories = _categories(
        top["categories"], problems, {**_CATEGORY_KEYS, **(category_keys or {})}
    )
    images = _images(top["images"], problems, {**_IMAGE_KEYS, **(image_keys or {})})
    refused = {problem.image_id for problem in problems} - images.keys() - {None}
    known = _Known(images, {each.category_id for each in categories}, refused)
    _attach(top["annotations"], known, problems)
    ordered = [images[image_id] for image_id in sorted(images)]
    return CocoAnnotations(
        categories=categories,
        images=ordered,
        problems=problems,
        digest=digest,
        listed_images=len(top["images"]),
        listed_annotations=len(top["annotations"]),
    )


def listing_of(
    coco: CocoAnnotations,
    *,
    mounts: dict[str, str],
    images: Callable[[Entry], File],
    title: str,
    where: str,
    federated: bool = False,
) -> Listing:
    """Make a listing of annotations.

    Args:
        coco: the annotations; its images move into the listing.
        mounts: where files lie.
        images: gives the file of an image entry.
        title: what was read.
        where: where users get what is missing.
        federated: image entries say which categories were looked for.
    """
    index = {each.category_id: each.category_index for each in coco.categories}
    return Listing(
        rules=AnnotationRules(category_index=index, federated=federated),
        categories=coco.categories,
        images=[Listed(entry, images(entry)) for entry in coco.images],
        mounts=mounts,
        problems=coco.problems,
        listed_images=coco.listed_images,
        listed_annotations=coco.listed_annotations,
        title=title,
        source=f"annotations sha256:{coco.digest}",
        where=where,
    )


def _places(config: CocoIngest) -> tuple[str, str]:
    """Find the annotation file and the images, or say in one error what is not there."""
    name = f"instances_{config.split}.json"
    annotations = config.annotations or dataset_files.find_file(config.root, f"annotations/{name}")
    images = config.images or dataset_files.find_folder(config.root, config.split)
    wrong = []
    if not annotations or not dataset_files.is_there(annotations):
        folder = storage.join(config.root, "annotations")
        found = [each for each in dataset_files.list_names(folder) if each.endswith(".json")]
        listed = ", ".join(found[:10]) or "no annotation file"
        place = config.annotations or storage.join(folder, name)
        wrong.append(
            f"{place} is not there ({folder} has {listed}); "
            "choose another --split, or name the file with --annotations"
        )
    if not images or not dataset_files.is_there(images):
        place = config.images or storage.join(config.root, config.split)
        wrong.append(f"{place} is not there; name the images' folder with --images")
    if wrong or not annotations or not images:
        raise DatasetError("\n".join([*wrong, _WHERE]))
    return annotations, images


def _check_top(top: object, uri: str) -> Entry:
    if not isinstance(top, dict):
        raise DatasetError(
            f"{uri} is no COCO annotation file: it holds {_type_name(top)}, not an object with "
            "images, annotations and categories (a list is a results file)"
        )
    wrong = [
        f"{key} is {'missing' if key not in top else _type_name(top[key])}"
        for key in ("images", "annotations", "categories")
        if not isinstance(top.get(key), list)
    ]
    if wrong:
        raise DatasetError(
            f"{uri} is no COCO annotation file: {', '.join(wrong)}; each must be a list"
        )
    empty = [key for key in ("images", "categories") if not top[key]]
    if empty:
        raise DatasetError(f"{uri} has no {' and no '.join(empty)}; there is nothing to ingest")
    return top


def _check_kind(top: Entry, uri: str) -> None:
    """Recognize files of other kinds, whose every annotation would else be told as broken."""
    first = {key: (top[key] or [None])[0] for key in ("images", "annotations")}
    marks = [
        ("images", "neg_category_ids", "an LVIS file; type: python jobs/ingest.py lvis"),
        ("annotations", "segments_info", "a panoptic file; take the one of instances"),
    ]
    for key, mark, told in marks:
        entry = first[key]
        if isinstance(entry, dict) and mark in entry:
            raise DatasetError(f"{uri} is {told} ({key} have {mark})")


def _categories(entries: list[object], problems: list[Problem], keys: Keys) -> tuple[Category, ...]:
    """Number the categories by ascending id."""
    names: dict[int, str] = {}
    for entry in entries:
        wrong = _wrong(entry, keys)
        if not wrong and isinstance(entry, dict) and entry["id"] in names:
            wrong = f"id {entry['id']} is used by {names[entry['id']]!r} already"
        if wrong or not isinstance(entry, dict):
            shown = entry.get("name") if isinstance(entry, dict) else entry
            problems.append(
                Problem(
                    kind="category_entry",
                    reason=f"category {shortened(repr(shown))}: {wrong}",
                    raw=json.dumps(entry),
                )
            )
        else:
            names[entry["id"]] = entry["name"]
    return tuple(
        Category(category_id=category_id, category_index=index, name=names[category_id])
        for index, category_id in enumerate(sorted(names))
    )


def _images(entries: list[object], problems: list[Problem], keys: Keys) -> dict[int, Entry]:
    images: dict[int, Entry] = {}
    for entry in entries:
        wrong = _wrong(entry, keys)
        if wrong or not isinstance(entry, dict):
            problems.append(problem_of("image_entry", wrong, entry))
        elif entry["id"] in images:
            first = images[entry["id"]]["file_name"]
            reason = f"id {entry['id']} is used by {first} already"
            problems.append(problem_of("duplicate_image_id", reason, entry))
        elif leaves_folder(entry["file_name"]):
            reason = "it must stay under the folder of the images"
            problems.append(problem_of("path_outside_root", reason, entry))
        else:
            # The key is ours: whatever an exporter put there is no annotation list.
            images[entry["id"]] = {**entry, "annotations": []}
    return images


class _Known(NamedTuple):
    """What annotations may point to."""

    images: dict[int, Entry]
    category_ids: set[int]
    refused: set[int | None]
    """Ids of images whose entries have problems themselves."""


def _attach(entries: list[object], known: _Known, problems: list[Problem]) -> None:
    """Give each image its annotations, in the order of their ids."""
    for entry, kind, reason in _judged(entries, known):
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        image = known.images.get(image_id) if isinstance(image_id, int) else None
        if kind:
            problems.append(problem_of(kind, reason, entry, image=image or {}))
        elif image is not None:
            image["annotations"].append(entry)
    for image in known.images.values():
        image["annotations"].sort(key=lambda each: int(each["id"]))


def _judged(entries: list[object], known: _Known) -> Iterator[tuple[object, str, str]]:
    """Give each annotation with kind and reason of every problem, or "" where it is sound."""
    seen: set[int] = set()
    for entry in entries:
        wrong = _wrong(entry, _ANNOTATION_KEYS)
        if wrong or not isinstance(entry, dict):
            yield entry, "annotation_entry", wrong
            continue
        found = []
        if entry["id"] in seen:
            found.append(("duplicate_annotation_id", f"id {entry['id']} is used already"))
        if entry["image_id"] not in known.images:
            why = ", whose entry is refused" if entry["image_id"] in known.refused else ""
            found.append(("unknown_image", f"image_id is {entry['image_id']}{why}"))
        if entry["category_id"] not in known.category_ids:
            found.append(("unknown_category", f"category_id is {entry['category_id']}"))
        seen.add(entry["id"])
        for kind, reason in found or [("", "")]:
            yield entry, kind, reason


def _wrong(entry: object, keys: Keys) -> str:
    """Say what is wrong with the keys of an entry; "" where nothing is."""
    if not isinstance(entry, dict):
        return f"it is {_type_name(entry)}, not an object"
    missing = [key for key in keys if key not in entry]
    told = [f"{', '.join(missing)} missing"] if missing else []
    told += [
        f"{key} is {shortened(repr(entry[key]), 40)}"
        for key, is_right in keys.items()
        if key in entry and not is_right(entry[key])
    ]
    return "; ".join(told)


def _is_file_name(value: object) -> bool:
    # What no file system takes must not look like a disk that fails.
    return (
        isinstance(value, str)
        and is_name(value)
        and len(value.encode()) <= _LONGEST_PATH
        and all(len(part.encode()) <= _LONGEST_PART for part in value.split("/"))
    )


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_number(value: object) -> bool:
    # NaN and infinity pass: they are told apart by name later.
    if isinstance(value, int):
        return not isinstance(value, bool) and value in INT64
    return isinstance(value, float)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_area(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and not value < 0


def _is_flag(value: object) -> bool:
    return value in (0, 1) and isinstance(value, int)


def _is_segmentation(value: object) -> bool:
    # Only its shape: its numbers are many, and are checked by the workers.
    if isinstance(value, list):
        return all(isinstance(part, list) for part in value)
    return isinstance(value, dict) and isinstance(value.get("counts"), list | str)


_CATEGORY_KEYS = {"id": is_id, "name": is_name}
_IMAGE_KEYS = {"id": is_id, "file_name": _is_file_name, "height": _is_side, "width": _is_side}
_ANNOTATION_KEYS = {
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
