"""COCO truth and results files: read, checked against each other, and written.

An evaluator that is handed a wrong file gives a wrong number, or a KeyError from its depths. What
could make it do so is looked for first, and all of it is told in one error (faults.py).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.evaluation.federated import check_federated
from pipeline.evaluation.problems import Faults, raise_all, short
from pipeline.evaluation.rle import BrokenSegmentation, to_rle

Entry = dict[str, Any]

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CheckedFiles:
    """A truth and detections that any evaluator can take."""

    images: list[Entry]
    """id, height, width; a size that the truth does not give, and nobody needs, is 0."""
    categories: list[Entry]
    """id, name; every name once."""
    annotations: list[Entry]
    """id (anew, from 1), image_id, category_id, iscrowd, area; bbox and segmentation if asked."""
    detections: list[Entry]
    """id (from 1), image_id, category_id, score; bbox, segmentation and mask_area_px if asked."""
    notices: tuple[str, ...]
    """What is no error, yet should be known by who reads the numbers."""


@dataclass(frozen=True, slots=True)
class _Truth:
    """What entries of either file may refer to, and what they need."""

    sizes_hw: dict[int, Size | None]
    """By image id; None where the truth does not say."""
    names: dict[int, str]
    """By category id."""
    masks: bool
    boxes: bool
    known: bool = True
    """False where there is no truth to look ids up in."""

    @property
    def keys(self) -> tuple[str, ...]:
        return ("image_id", "category_id") + ("bbox",) * self.boxes + ("segmentation",) * self.masks


def read_json(uri: str) -> object:
    """Read a JSON file.

    Raises:
        StorageError: it cannot be read.
        DatasetError: it is not JSON, for instance because it was cut short.
    """
    data = storage.read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise DatasetError(
            f"{uri} ({len(data)} bytes) is not valid JSON: {error}. A file that was cut short "
            "breaks off at its end; compare its size with the original's, and copy it again"
        ) from error


def write_detections(uri: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write detections as a COCO results file; readers never see half of it.

    Raises:
        StorageError: the place cannot be written.
    """
    storage.write_bytes_atomic(uri, json.dumps(list(rows), separators=(",", ":")).encode())


def check(
    truth: object,
    detections: object,
    *,
    masks: bool,
    boxes: bool,
    federated: bool = False,
    names: tuple[str, str] = ("truth", "detections"),
) -> CheckedFiles:
    """Check a truth and detections against each other, and clean both for the evaluators.

    Segmentations of any form become compressed run lengths, annotations are numbered anew from 1
    (pycocotools takes id 0 for "not matched"), and missing areas and crowd flags are filled in
    with a notice.

    Args:
        truth: what a COCO annotation file holds.
        detections: what a COCO results file holds.
        masks: segmentations are needed.
        boxes: boxes are needed.
        federated: the truth must be one of LVIS, which has no crowds.
        names: what errors call the two.

    Raises:
        DatasetError: everything that is wrong with either, in one message.
    """
    of_truth, of_detections = Faults(names[0]), Faults(names[1])
    entries = _truth_lists(truth, of_truth)
    about = _about_truth(entries, of_truth, masks=masks, boxes=boxes)
    if federated:
        check_federated(entries, of_truth)
    annotations, notices = _annotations(
        entries.get("annotations", []), about, of_truth, crowds=not federated
    )
    found = _detections(detections, about, of_detections)
    raise_all([of_truth, of_detections])
    images = [
        {"id": image_id, "height": (size or (0, 0))[0], "width": (size or (0, 0))[1]}
        for image_id, size in about.sizes_hw.items()
    ]
    categories = [{"id": key, "name": name} for key, name in about.names.items()]
    notices += _about_detections(found, num_images=len(images))
    return CheckedFiles(images, categories, annotations, found, tuple(notices))


def _truth_lists(truth: object, faults: Faults) -> dict[str, list[Any]]:
    lists = ("images", "annotations", "categories")
    if isinstance(truth, dict) and all(isinstance(truth.get(key), list) for key in lists):
        if not truth["annotations"]:
            faults.add("nothing to evaluate against", "annotations is empty")
        for key in lists:
            _check_ids(truth[key], key, faults)
        return truth
    holds = f"keys {sorted(truth)}" if isinstance(truth, dict) else f"a {type(truth).__name__}"
    faults.add("not a truth", f"it holds {holds:.60}")
    return {}


def _about_truth(
    entries: Mapping[str, list[Any]], faults: Faults, *, masks: bool, boxes: bool
) -> _Truth:
    images = _complete(entries.get("images", []), ("id",), "images", faults)
    categories = _complete(entries.get("categories", []), ("id", "name"), "categories", faults)
    sizes = {entry["id"]: _size_of(entry) for entry in images if _is_whole(entry["id"])}
    if masks:
        for image_id in (key for key, size in sizes.items() if size is None):
            faults.add("image without size", f"image {image_id}")
    names = [str(entry["name"]) for entry in categories]
    named_once = {
        entry["id"]: f"{name} ({entry['id']})" if names.count(name) > 1 else name
        for entry, name in zip(categories, names, strict=True)
        if _is_whole(entry["id"])
    }
    return _Truth(sizes, named_once, masks=masks, boxes=boxes, known=bool(entries))


def _annotations(
    entries: list[Any], about: _Truth, faults: Faults, *, crowds: bool
) -> tuple[list[Entry], list[str]]:
    clean: list[Entry] = []
    notices: list[str] = []
    for place, entry in enumerate(entries):
        where = f"annotations[{place}]{_id_of(entry)}"
        kept = _common(entry, where, about, faults)
        if isinstance(entry, dict):
            _check_flags(entry, where, faults)
        if kept is None:
            continue
        area = kept["mask_area_px"] if about.masks else kept["bbox"][2] * kept["bbox"][3]
        is_crowd = int(entry.get("iscrowd", 0) == 1)
        given = {"iscrowd": is_crowd, "area": entry.get("area", area)}
        clean.append(kept | given | {"id": len(clean) + 1})
    filled_in = {"iscrowd": "0, no crowd"} if crowds else {}
    for key, taken in (filled_in | {"area": "that of the mask or box"}).items():
        missing = sum(isinstance(entry, dict) and key not in entry for entry in entries)
        if missing:
            notices.append(f"{missing} annotations have no {key}; it was taken as {taken}")
    return clean, notices


def _check_flags(entry: Entry, where: str, faults: Faults) -> None:
    is_crowd, area = entry.get("iscrowd", 0), entry.get("area", 0)
    if is_crowd not in (0, 1):
        faults.add("broken iscrowd", f"{where}: iscrowd {short(is_crowd)}")
    if not _is_finite(area) or area < 0:
        faults.add("broken area", f"{where}: area {short(area)}")


def _detections(detections: object, about: _Truth, faults: Faults) -> list[Entry]:
    if not isinstance(detections, list):
        keys = f" with keys {sorted(detections)}" if isinstance(detections, dict) else ""
        faults.add("not a list", f"it is a {type(detections).__name__}{keys:.60}")
        return []
    clean: list[Entry] = []
    for place, entry in enumerate(detections):
        kept = _common(entry, f"entry {place}", about, faults, more=("score",))
        if isinstance(entry, dict) and not _is_finite(entry.get("score", 0)):
            kind = "score that is not a finite number"
            faults.add(kind, f"entry {place}: score {short(entry['score'])}")
        if kept is not None:
            clean.append(kept | {"id": len(clean) + 1, "score": entry["score"]})
    return clean


def _common(
    entry: Entry, where: str, about: _Truth, faults: Faults, *, more: tuple[str, ...] = ()
) -> Entry | None:
    """Check what annotations and detections share; None where there is too little to go on with."""
    if not _has(entry, (*about.keys, *more), where, faults):
        return None
    keys = ("image_id", "category_id")
    # A list, so that both are looked at.
    is_known = all([_is_known(entry, key, where, about, faults) for key in keys])  # noqa: C419
    kept = {"image_id": entry["image_id"], "category_id": entry["category_id"]}
    if about.boxes:
        kept["bbox"] = entry["bbox"]
        if not _is_box(entry["bbox"]):
            faults.add("broken bbox", f"{where}: bbox {short(entry['bbox'])}")
            return None
    size_hw = about.sizes_hw.get(entry["image_id"]) if is_known else None
    if about.masks:
        if size_hw is None:
            return None
        try:
            rle, area_px = to_rle(entry["segmentation"], size_hw=size_hw)
        except BrokenSegmentation as fault:
            faults.add(fault.kind, f"{where}, image {entry['image_id']}: {fault.value}")
            return None
        kept |= {"segmentation": rle, "mask_area_px": area_px}
    return kept if is_known else None


def _is_known(entry: Entry, key: str, where: str, about: _Truth, faults: Faults) -> bool:
    ids: Mapping[int, object] = about.sizes_hw if key == "image_id" else about.names
    if not _is_whole(entry[key]):
        faults.add("id that is not a number", f"{where}: {key} {short(entry[key])}")
        return False
    if about.known and entry[key] not in ids:
        faults.add(f"unknown {key}", f"{where}: {key} {entry[key]}")
    return entry[key] in ids


def _complete(entries: list[Any], keys: tuple[str, ...], field: str, faults: Faults) -> list[Entry]:
    return [
        entry
        for place, entry in enumerate(entries)
        if _has(entry, keys, f"{field}[{place}]", faults)
    ]


def _has(entry: object, keys: tuple[str, ...], where: str, faults: Faults) -> bool:
    if not isinstance(entry, dict):
        faults.add("not an object", f"{where}: {short(entry)}")
        return False
    missing = [key for key in keys if key not in entry]
    if missing:
        faults.add("missing key", f"{where}: no {', no '.join(missing)}")
    return not missing


def _check_ids(entries: list[Any], field: str, faults: Faults) -> None:
    seen: set[int] = set()
    for entry in entries:
        if not isinstance(entry, dict) or "id" not in entry:
            continue
        if not _is_whole(entry["id"]):
            faults.add("id that is not a number", f"{field}: id {short(entry['id'])}")
        elif entry["id"] in seen:
            faults.add("same id twice", f"{field}: id {entry['id']}")
        else:
            seen.add(entry["id"])


def _about_detections(found: list[Entry], *, num_images: int) -> list[str]:
    if not found:
        return ["there are no detections at all: every AP is 0"]
    bare = num_images - len({entry["image_id"] for entry in found})
    if 2 * bare <= num_images:
        return []
    return [
        f"{bare} of the truth's {num_images} images have no detection; their objects count as "
        "missed. If the model saw only a part of the images, cut the truth to that part"
    ]


def _id_of(entry: object) -> str:
    return f" (id {short(entry['id'])})" if isinstance(entry, dict) and "id" in entry else ""


def _size_of(image: Entry) -> Size | None:
    height, width = image.get("height"), image.get("width")
    if _is_whole(height) and _is_whole(width) and min(height, width) > 0:
        return height, width
    return None


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    return all(map(_is_finite, value)) and min(value[2:]) >= 0
