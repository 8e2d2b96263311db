"""Read, check and write COCO annotation and results files.

Given a wrong file, the evaluators return a wrong number or fail with a KeyError. So files are
checked first, and one error reports all problems (problems.py).
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from pipeline import checksums
from pipeline.data.annotation_rules import DEFAULTS, is_area_off, is_crowd, is_object
from pipeline.data.json_entries import advise, parse_unique
from pipeline.data.problems import is_id, is_side
from pipeline.errors import DatasetError
from pipeline.evaluation.federated import check_federated
from pipeline.evaluation.problems import Problems, raise_all, show_value
from pipeline.evaluation.rle import MaskRle, SegmentationError, to_rle, to_rles

Entry = dict[str, Any]

Size = tuple[int, int]

_MAX_PIXELS = 2**30
"""Run lengths have 32 bits, and boundaries are measured on pixels: each takes a byte."""


@dataclass(frozen=True, slots=True)
class CheckedFiles:
    """A truth and detections that any evaluator accepts."""

    images: list[Entry]
    """id, height, width; a size that is missing and not needed is 0."""
    categories: list[Entry]
    """id, name; names are unique."""
    annotations: list[Entry]
    """id (new, from 1), image_id, category_id, iscrowd, area; bbox, segmentation on request."""
    detections: list[Entry]
    """id (from 1), image_id, category_id, score; bbox, segmentation, mask_area_px on request."""
    notices: tuple[str, ...]
    """Remarks to show with the metrics."""


@dataclass(frozen=True, slots=True)
class _TruthIndex:
    """Images and categories of the truth, and the keys that entries of both files need."""

    sizes_hw: dict[int, Size | None]
    """By image id; None if the truth has none."""
    names: dict[int, str]
    """By category id."""
    masks: bool
    boxes: bool
    known: bool = True
    """False if the truth could not be read: ids cannot be looked up."""

    @property
    def keys(self) -> tuple[str, ...]:
        return ("image_id", "category_id") + ("bbox",) * self.boxes + ("segmentation",) * self.masks


def read_json(uri: str) -> object:
    """Read a JSON file.

    Raises:
        StorageError: it cannot be read, or was changed after this package wrote it.
        DatasetError: it is not JSON, for instance because it was truncated.
    """
    data = checksums.read_file(uri)
    try:
        return parse_unique(data)
    except ValueError as error:
        raise DatasetError(
            f"{uri} ({len(data)} bytes) is not valid JSON: {error}{advise(error)}"
        ) from error


def write_detections(uri: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write detections as a COCO results file, atomically and with a checksum.

    Raises:
        StorageError: the file cannot be written.
    """
    checksums.write_file(uri, json.dumps(list(rows), separators=(",", ":")).encode())


def check_files(
    truth: object,
    detections: object,
    *,
    masks: bool,
    boxes: bool,
    federated: bool = False,
    names: tuple[str, str] = ("truth", "detections"),
) -> CheckedFiles:
    """Check a truth and detections against each other, and normalize both for the evaluators.

    Segmentations become compressed RLE, annotations get new ids from 1 (pycocotools reads id 0 as
    "not matched"), and missing areas and crowd flags are filled in with a notice.

    Args:
        truth: content of a COCO annotation file.
        detections: content of a COCO results file.
        masks: whether segmentations are needed.
        boxes: whether boxes are needed.
        federated: whether the truth must be one of LVIS, which has no crowds.
        names: of the two in error messages.

    Raises:
        DatasetError: all problems of both files.
    """
    truth_problems, detection_problems = Problems(names[0]), Problems(names[1])
    entries = _check_lists(truth, truth_problems)
    index = _index_truth(entries, truth_problems, masks=masks, boxes=boxes)
    if federated:
        check_federated(entries, truth_problems)
    annotations, notices = _check_annotations(
        entries.get("annotations", []), index, truth_problems, crowds=not federated
    )
    found = _check_detections(detections, index, detection_problems)
    raise_all([truth_problems, detection_problems])
    images = [
        {"id": image_id, "height": (size or (0, 0))[0], "width": (size or (0, 0))[1]}
        for image_id, size in index.sizes_hw.items()
    ]
    categories = [{"id": key, "name": name} for key, name in index.names.items()]
    notices += _note_shared_files(entries["images"])
    notices += _note_images_without_detections(found, num_images=len(images))
    return CheckedFiles(images, categories, annotations, found, tuple(notices))


def _check_lists(truth: object, problems: Problems) -> dict[str, list[Any]]:
    lists = ("images", "annotations", "categories")
    if isinstance(truth, dict) and all(isinstance(truth.get(key), list) for key in lists):
        if not truth["annotations"]:
            problems.add("no annotations", "annotations is empty")
        for key in lists:
            _check_ids(truth[key], key, problems)
        return truth
    holds = f"keys {sorted(truth)}" if isinstance(truth, dict) else f"a {type(truth).__name__}"
    problems.add("not an annotation file", f"it holds {holds:.60}")
    return {}


def _index_truth(
    entries: Mapping[str, list[Any]], problems: Problems, *, masks: bool, boxes: bool
) -> _TruthIndex:
    images = _select_complete(entries.get("images", []), ("id",), "images", problems)
    categories = _select_complete(
        entries.get("categories", []), ("id", "name"), "categories", problems
    )
    sizes = {entry["id"]: _read_size(entry) for entry in images if is_id(entry["id"])}
    if masks:
        for image_id in (key for key, size in sizes.items() if size is None):
            problems.add("image without size", f"image {image_id}")
    names = [str(entry["name"]) for entry in categories]
    unique_names = {
        entry["id"]: f"{name} ({entry['id']})" if names.count(name) > 1 else name
        for entry, name in zip(categories, names, strict=True)
        if is_id(entry["id"])
    }
    return _TruthIndex(sizes, unique_names, masks=masks, boxes=boxes, known=bool(entries))


def _check_annotations(
    entries: list[Any], index: _TruthIndex, problems: Problems, *, crowds: bool
) -> tuple[list[Entry], list[str]]:
    clean: list[Entry] = []
    notices: list[str] = []
    for position, (entry, mask) in enumerate(
        zip(entries, _read_masks(entries, index), strict=True)
    ):
        where = f"annotations[{position}]{_show_id(entry)}"
        checked = _check_entry(entry, where, index, problems, mask=mask, more=("id",))
        if isinstance(entry, dict):
            _check_flags(entry, where, problems)
        if checked is None:
            continue
        area = checked["mask_area_px"] if index.masks else checked["bbox"][2] * checked["bbox"][3]
        flags = {"iscrowd": int(is_crowd(entry)), "area": entry.get("area", area)}
        clean.append(checked | flags | {"id": len(clean) + 1})
    for key, default in DEFAULTS.items():
        missing = sum(isinstance(entry, dict) and key not in entry for entry in entries)
        if missing and (crowds or key != "iscrowd"):
            notices.append(f"{missing} annotations have no {key}; used {default}")
    if clean and not any(is_object(entry, federated=not crowds) for entry in clean):
        ignored = "are crowds (iscrowd 1)" if crowds else "have area 0"
        problems.add("no objects", f"all {len(clean)} annotations {ignored}")
    return clean, notices + _note_areas(clean)


def _note_areas(annotations: list[Entry]) -> list[str]:
    """Report areas that are far from those of the masks or boxes."""
    off = [
        entry
        for entry in annotations
        if not entry["iscrowd"] and _is_finite(entry["area"]) and _is_far_off(entry)
    ]
    if not off:
        return []
    first = off[0]
    return [
        f"{len(off)} annotations have an area that is far from that of their mask or box, such as "
        f"area {first['area']:g} in image {first['image_id']}; AP of "
        "small, medium and large objects uses it all the same, as in pycocotools"
    ]


def _is_far_off(entry: Entry) -> bool:
    if "mask_area_px" in entry:
        return is_area_off(entry["area"], mask_px=entry["mask_area_px"])
    # An object may fill a small part of its box.
    return bool(entry["area"] <= 1 < entry["bbox"][2] * entry["bbox"][3])


def _check_flags(entry: Entry, where: str, problems: Problems) -> None:
    is_crowd, area = entry.get("iscrowd", 0), entry.get("area", 0)
    if is_crowd not in (0, 1):
        problems.add("invalid iscrowd", f"{where}: iscrowd {show_value(is_crowd)}")
    if not _is_finite(area) or area < 0:
        problems.add("invalid area", f"{where}: area {show_value(area)}")


def _check_detections(detections: object, index: _TruthIndex, problems: Problems) -> list[Entry]:
    if not isinstance(detections, list):
        keys = f" with keys {sorted(detections)}" if isinstance(detections, dict) else ""
        problems.add("not a list", f"it is a {type(detections).__name__}{keys:.60}")
        return []
    clean: list[Entry] = []
    masks = _read_masks(detections, index)
    for position, (entry, mask) in enumerate(zip(detections, masks, strict=True)):
        where = f"entry {position}"
        checked = _check_entry(entry, where, index, problems, mask=mask, more=("score",))
        if isinstance(entry, dict) and not _is_finite(entry.get("score", 0)):
            kind = "score is not finite"
            problems.add(kind, f"{where}: score {show_value(entry['score'])}")
        if checked is not None:
            clean.append(checked | {"id": len(clean) + 1, "score": entry["score"]})
    return clean


def _read_masks(entries: list[Any], index: _TruthIndex) -> list[MaskRle | None]:
    """Read the masks that need no polygons filled and no problem named; None for the others."""
    if not index.masks:
        return [None] * len(entries)
    entries = [entry if isinstance(entry, dict) else {} for entry in entries]
    ids = [entry.get("image_id") for entry in entries]
    sizes_hw = [index.sizes_hw.get(key) if is_id(key) else None for key in ids]
    return to_rles([entry.get("segmentation") for entry in entries], sizes_hw)


def _check_entry(
    entry: Entry,
    where: str,
    index: _TruthIndex,
    problems: Problems,
    *,
    mask: MaskRle | None,
    more: tuple[str, ...],
) -> Entry | None:
    """Check the fields that annotations and detections share; None if the entry is unusable.

    `mask` is the entry's from `_read_masks`.
    """
    if not _has_keys(entry, (*index.keys, *more), where, problems):
        return None
    keys = ("image_id", "category_id")
    # A list, not a generator: check both.
    is_known = all([_check_id(entry, key, where, index, problems) for key in keys])  # noqa: C419
    checked = {"image_id": entry["image_id"], "category_id": entry["category_id"]}
    if index.boxes:
        checked["bbox"] = entry["bbox"]
        if not _is_box(entry["bbox"]):
            problems.add("invalid bbox", f"{where}: bbox {show_value(entry['bbox'])}")
            return None
    size_hw = index.sizes_hw.get(entry["image_id"]) if is_known else None
    if index.masks:
        if size_hw is None:
            return None
        try:
            rle, area_px = mask or to_rle(entry["segmentation"], size_hw=size_hw)
        except SegmentationError as error:
            problems.add(error.kind, f"{where}, image {entry['image_id']}: {error.value}")
            return None
        checked |= {"segmentation": rle, "mask_area_px": area_px}
    return checked if is_known else None


def _check_id(entry: Entry, key: str, where: str, index: _TruthIndex, problems: Problems) -> bool:
    ids: Mapping[int, object] = index.sizes_hw if key == "image_id" else index.names
    if not is_id(entry[key]):
        problems.add("id is not an integer", f"{where}: {key} {show_value(entry[key])}")
        return False
    if index.known and entry[key] not in ids:
        problems.add(f"unknown {key}", f"{where}: {key} {entry[key]}")
    return entry[key] in ids


def _select_complete(
    entries: list[Any], keys: tuple[str, ...], field: str, problems: Problems
) -> list[Entry]:
    return [
        entry
        for position, entry in enumerate(entries)
        if _has_keys(entry, keys, f"{field}[{position}]", problems)
    ]


def _has_keys(entry: object, keys: tuple[str, ...], where: str, problems: Problems) -> bool:
    if not isinstance(entry, dict):
        problems.add("not an object", f"{where}: {show_value(entry)}")
        return False
    missing = [key for key in keys if key not in entry]
    if missing:
        problems.add("missing key", f"{where}: no {', no '.join(missing)}")
    return not missing


def _check_ids(entries: list[Any], field: str, problems: Problems) -> None:
    seen: set[int] = set()
    for entry in entries:
        if not isinstance(entry, dict) or "id" not in entry:
            continue
        if not is_id(entry["id"]):
            problems.add("id is not an integer", f"{field}: id {show_value(entry['id'])}")
        elif entry["id"] in seen:
            problems.add("duplicate id", f"{field}: id {entry['id']}")
        else:
            seen.add(entry["id"])


def _note_shared_files(images: list[Entry]) -> list[str]:
    names = Counter(str(image["file_name"]) for image in images if "file_name" in image)
    shared = [name for name, count in names.items() if count > 1]
    if not shared:
        return []
    return [
        f"{len(shared)} files are those of several images, such as {show_value(shared[0])}: of the "
        "objects in a file, each image has its own only, and the others count as false detections"
    ]


def _note_images_without_detections(found: list[Entry], *, num_images: int) -> list[str]:
    if not found:
        return ["no detections: every AP is 0"]
    bare = num_images - len({entry["image_id"] for entry in found})
    if 2 * bare <= num_images:
        return []
    return [
        f"{bare} of the truth's {num_images} images have no detection; their objects count as "
        "missed. If the model ran on some of the images only, reduce the truth to these"
    ]


def _show_id(entry: object) -> str:
    return f" (id {show_value(entry['id'])})" if isinstance(entry, dict) and "id" in entry else ""


def _read_size(image: Entry) -> Size | None:
    height, width = image.get("height"), image.get("width")
    if is_side(height) and is_side(width) and height * width <= _MAX_PIXELS:
        return height, width
    return None


def _is_finite(value: object) -> TypeGuard[float]:
    # JSON's integers have no limit, and numpy's functions raise an error on large ones.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


def _is_box(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    return all(map(_is_finite, value)) and min(value[2:]) >= 0
