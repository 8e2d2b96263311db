"""LVIS: COCO's photos with 1,200 categories, and LVIS*, its masks for COCO's 80 categories.

In each image a few categories were looked for, and only of these something is known. So an image
entry lists categories that are not there (neg_category_ids) and those of which instances may be
missing (not_exhaustive_category_ids); both go into the rows, and a truth can be rebuilt from them.
"""

import logging
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline import storage
from pipeline.data import dataset_files
from pipeline.data.ingest_config import LvisIngest
from pipeline.data.manifest import Category
from pipeline.data.problems import Entry, is_id, is_name, problem_of
from pipeline.data.schema import FEDERATED
from pipeline.data.source_index import File, Listing
from pipeline.data.sources.coco import CocoAnnotations, checked, listing_of, read_top
from pipeline.data.sources.coco_synsets import COCO_CATEGORIES
from pipeline.errors import DatasetError

_log = logging.getLogger(__name__)

_WHERE = (
    "LVIS's annotations come from lvisdataset.org (lvis_v1_train.json.zip, lvis_v1_val.json.zip), "
    "its photos from cocodataset.org (train2017.zip, val2017.zip); no zip need be unpacked"
)

_UNSORTED = "images"
"""Mount of images whose entries name no folder."""


def list_lvis(config: LvisIngest) -> Listing:
    """List LVIS, v0.5 or v1, or the part of it that concerns COCO's categories.

    Raises:
        DatasetError: something of it is not there, or the annotation file is none of LVIS.
        StorageError: it cannot be read.
    """
    place = _annotations(config)
    _log.info("ingest: reading %s", place)
    top, digest = read_top(place)
    _check_kind(top, place)
    coco = _read(top, digest)
    if config.only_coco_categories:
        coco = only_coco_categories(coco, _synsets(top))
        kept = sum(len(image["annotations"]) for image in coco.images)
        _log.info(
            "ingest: %d of %d annotations are of COCO's categories", kept, coco.listed_annotations
        )
    listing = listing_of(
        coco,
        mounts=_mounts(config, Counter(_folder(image) for image in coco.images)),
        images=_file,
        title=f"{place.rsplit('/', 1)[-1]} and its images",
        where=_WHERE,
        federated=True,
    )
    only = " only_coco_categories" if config.only_coco_categories else ""
    return replace(listing, source=listing.source + only)


def only_coco_categories(coco: CocoAnnotations, synsets: dict[int, str]) -> CocoAnnotations:
    """Make LVIS*: all images, and what LVIS says of COCO's 80 categories, under COCO's ids.

    Categories that LVIS does not have are listed too, without a frequency: a model's categories
    are all 80.

    Args:
        coco: sound LVIS annotations.
        synsets: by LVIS category_id.
    """
    coco_id = {each.synset: each.category_id for each in COCO_CATEGORIES}
    new_id = {old: coco_id[synset] for old, synset in synsets.items() if synset in coco_id}
    frequency = {
        new_id[each.category_id]: each.frequency
        for each in coco.categories
        if each.category_id in new_id
    }
    return replace(
        coco,
        categories=tuple(
            Category(
                category_id=each.category_id,
                category_index=index,
                name=each.name,
                frequency=frequency.get(each.category_id, ""),
            )
            for index, each in enumerate(COCO_CATEGORIES)
        ),
        images=[_renumbered(image, new_id) for image in coco.images],
    )


def _renumbered(image: Entry, new_id: dict[int, int]) -> Entry:
    annotations = [
        {**each, "category_id": new_id[each["category_id"]]}
        for each in image["annotations"]
        if each["category_id"] in new_id
    ]
    lists = {key: [new_id[old] for old in image[key] if old in new_id] for key in FEDERATED}
    return {**image, "annotations": annotations, **lists}


def _annotations(config: LvisIngest) -> str:
    if config.annotations:
        if dataset_files.is_there(config.annotations):
            return config.annotations
        raise DatasetError(f"{config.annotations} is not there")
    name = f"lvis_{config.version}_{config.split}.json"
    folder = storage.join(config.root, "annotations")
    found = dataset_files.find_file(config.root, name) or dataset_files.find_file(folder, name)
    if found:
        return found
    there = [
        each
        for each in dataset_files.list_names(config.root) + dataset_files.list_names(folder)
        if "lvis" in each
    ]
    raise DatasetError(
        f"{name} is not in {config.root} or its annotations/, nor in a zip there (found: "
        f"{', '.join(there[:10]) or 'no file of LVIS'}); choose another --split or --version, or "
        f"name the file with --annotations. {_WHERE}"
    )


def _check_kind(top: Entry, place: str) -> None:
    """Recognize files of another data set by what LVIS alone has."""
    lacking = [
        f"{name} have no {key}"
        for name, key in (("images", "neg_category_ids"), ("categories", "synset"))
        if not any(isinstance(each, dict) and key in each for each in top[name][:10])
    ]
    if lacking:
        raise DatasetError(
            f"{place} is no LVIS annotation file: its {', its '.join(lacking)}. For a file in the "
            "COCO layout, type: python jobs/ingest.py coco"
        )


def _read(top: Entry, digest: str) -> CocoAnnotations:
    """Bring entries into COCO's form, check them, and give categories their frequency."""
    for entry in top["images"]:
        _name(entry)
    for entry in top["annotations"]:
        if isinstance(entry, dict):
            entry.setdefault("iscrowd", 0)
    coco = checked(
        top,
        digest=digest,
        image_keys=dict.fromkeys(FEDERATED, _are_ids),
        category_keys={"synset": is_name, "frequency": ("r", "c", "f").__contains__},
    )
    known = {each.category_id for each in coco.categories}
    for image in coco.images:
        for key in FEDERATED:
            strange = [each for each in image[key] if each not in known]
            if strange:
                told = f"{key} names {', '.join(map(str, strange[:5]))}"
                coco.problems.append(problem_of("unknown_category", told, image))
                image[key] = [each for each in image[key] if each in known]
    frequency = {each["id"]: each["frequency"] for each in _sound(top["categories"])}
    categories = tuple(
        replace(each, frequency=frequency.get(each.category_id, "")) for each in coco.categories
    )
    return replace(coco, categories=categories)


def _sound(entries: list[Any]) -> list[Entry]:
    keys = ("id", "synset", "frequency")
    return [
        each
        for each in entries
        if isinstance(each, dict) and all(key in each for key in keys) and is_id(each["id"])
    ]


def _synsets(top: Entry) -> dict[int, str]:
    return {each["id"]: each["synset"] for each in _sound(top["categories"])}


def _name(entry: object) -> None:
    """Name an image by the end of its coco_url, as LVIS's own tools do.

    v1 has no file_name, and v0.5 names files of 2014 that nobody has; the photo's folder is not
    the split: LVIS's val holds photos of train2017 too.
    """
    url = entry.get("coco_url") if isinstance(entry, dict) else None
    if isinstance(entry, dict) and isinstance(url, str) and url.count("/") > 1:
        entry["file_name"] = "/".join(url.split("/")[-2:])


def _folder(image: Entry) -> str:
    folder, slash, _ = image["file_name"].partition("/")
    return folder if slash else _UNSORTED


def _file(image: Entry) -> File:
    return File(_folder(image), image["file_name"].partition("/")[2] or image["file_name"])


def _mounts(config: LvisIngest, counts: Counter[str]) -> dict[str, str]:
    """Find the folder of each part of COCO that images come from."""
    if config.images and not dataset_files.is_there(config.images):
        raise DatasetError(f"{config.images} is not there. {_WHERE}")
    find = partial(dataset_files.find_folder, config.images or config.root)
    # Photos may also lie in one folder without their parts.
    flat = config.images or find("images")
    mounts = {name: find(name, f"images/{name}") or flat for name in counts}
    missing = [name for name, place in mounts.items() if not place]
    if missing:
        told = "\n".join(
            f"{name}/ with {counts[name]} of the images is not in "
            f"{config.images or config.root}, nor in a zip there"
            for name in sorted(missing)
        )
        raise DatasetError(f"{told}\nName the folder that holds it with --images. {_WHERE}")
    return {name: place for name, place in sorted(mounts.items()) if place}


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(map(is_id, value))
