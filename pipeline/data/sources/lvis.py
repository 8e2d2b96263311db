"""LVIS: COCO's photos with 1,200 categories, and LVIS*, its masks for COCO's 80 categories.

Each image is annotated for a few categories only. Its entry lists categories that are absent
(neg_category_ids) and categories whose instances may be incomplete (not_exhaustive_category_ids);
rows hold both, so that an evaluation can rebuild the annotations.
"""

import logging
from collections import Counter
from dataclasses import replace
from functools import partial

from pipeline import storage
from pipeline.data import dataset_files
from pipeline.data.ingest_config import LvisIngest
from pipeline.data.manifest import Category
from pipeline.data.problems import Entry, is_id, is_name, make_problem
from pipeline.data.schema import FEDERATED
from pipeline.data.source_index import File, SourceIndex
from pipeline.data.sources.coco import CocoAnnotations, build_index, check_entries, read_lists
from pipeline.data.sources.coco_synsets import COCO_CATEGORIES
from pipeline.errors import DatasetError

_log = logging.getLogger(__name__)

_DOWNLOAD = (
    "Download LVIS's annotations from lvisdataset.org (lvis_v1_train.json.zip, "
    "lvis_v1_val.json.zip) and its photos from cocodataset.org (train2017.zip, val2017.zip); the "
    "zips need not be unpacked"
)

_NO_FOLDER = "images"
"""Mount of images whose entries name no folder."""


def list_lvis(config: LvisIngest) -> SourceIndex:
    """List LVIS, v0.5 or v1, or the part of it with COCO's categories.

    Raises:
        DatasetError: something is missing, or the annotation file is not of LVIS.
        StorageError: a file cannot be read.
    """
    uri = _find_annotations(config)
    _log.info("ingest: reading %s", uri)
    top, digest = read_lists(uri, annotation_defaults={"iscrowd": 0})
    _refuse_other_formats(top, uri)
    coco = _check_lvis(top, digest)
    if config.only_coco_categories:
        synsets = {each["id"]: each["synset"] for each in _valid_categories(top)}
        coco = keep_coco_categories(coco, synsets)
        kept = sum(len(image["annotations"]) for image in coco.images)
        _log.info(
            "ingest: %d of %d annotations are of COCO's categories", kept, coco.listed_annotations
        )
    index = build_index(
        coco,
        mounts=_find_mounts(config, Counter(_mount_of(image) for image in coco.images)),
        images=_file_of,
        title=f"{uri.rsplit('/', 1)[-1]} and its images",
        download=_DOWNLOAD,
        federated=True,
    )
    only = " only_coco_categories" if config.only_coco_categories else ""
    return replace(index, source=index.source + only)


def keep_coco_categories(coco: CocoAnnotations, synsets: dict[int, str]) -> CocoAnnotations:
    """Make LVIS*: all images, and the annotations of COCO's 80 categories, under COCO's ids.

    Categories that LVIS lacks are kept without a frequency, because models predict all 80.

    Args:
        coco: checked LVIS annotations.
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
        images=[_renumber(image, new_id) for image in coco.images],
    )


def _renumber(image: Entry, new_id: dict[int, int]) -> Entry:
    annotations = [
        {**each, "category_id": new_id[each["category_id"]]}
        for each in image["annotations"]
        if each["category_id"] in new_id
    ]
    lists = {key: [new_id[old] for old in image[key] if old in new_id] for key in FEDERATED}
    return {**image, "annotations": annotations, **lists}


def _find_annotations(config: LvisIngest) -> str:
    if config.annotations:
        if dataset_files.exists(config.annotations):
            return config.annotations
        raise DatasetError(
            f"{config.annotations} does not exist; name another file with --annotations"
        )
    name = f"lvis_{config.version}_{config.split}.json"
    folder = storage.join(config.root, "annotations")
    uri = dataset_files.find_file(config.root, name) or dataset_files.find_file(folder, name)
    if uri:
        return uri
    entries = dataset_files.list_entries(config.root) + dataset_files.list_entries(folder)
    others = [each for each in entries if "lvis" in each]
    raise DatasetError(
        f"{name} is not in {config.root}, its annotations/, or a zip there (found: "
        f"{', '.join(others[:10]) or 'no LVIS file'}); choose another --split or --version, or "
        f"name the file with --annotations. {_DOWNLOAD}"
    )


def _refuse_other_formats(top: Entry, uri: str) -> None:
    """Detect other formats by the keys that only LVIS has."""
    lacking = [
        f"{name} have no {key}"
        for name, key in (("images", "neg_category_ids"), ("categories", "synset"))
        if not any(isinstance(each, dict) and key in each for each in top[name][:10])
    ]
    if lacking:
        raise DatasetError(
            f"{uri} is not an LVIS annotation file: its {', its '.join(lacking)}. For a file in "
            "the COCO layout, use: python jobs/ingest.py coco"
        )


def _check_lvis(top: Entry, digest: str) -> CocoAnnotations:
    """Convert entries to COCO's format, check them, and add the frequencies of categories."""
    for entry in top["images"]:
        _set_file_name(entry)
    coco = check_entries(
        top,
        digest=digest,
        image_keys=dict.fromkeys(FEDERATED, _are_ids),
        category_keys={"synset": is_name, "frequency": ("r", "c", "f").__contains__},
    )
    known = {each.category_id for each in coco.categories}
    for image in coco.images:
        for key in FEDERATED:
            unknown = [each for each in image[key] if each not in known]
            if unknown:
                reason = f"{key} names {', '.join(map(str, unknown[:5]))}"
                coco.problems.append(make_problem("unknown_category", reason, image))
                image[key] = [each for each in image[key] if each in known]
    frequency = {each["id"]: each["frequency"] for each in _valid_categories(top)}
    categories = tuple(
        replace(each, frequency=frequency.get(each.category_id, "")) for each in coco.categories
    )
    return replace(coco, categories=categories)


def _valid_categories(top: Entry) -> list[Entry]:
    keys = ("id", "synset", "frequency")
    return [
        each
        for each in top["categories"]
        if isinstance(each, dict)
        and all(key in each for key in keys)
        and is_id(each["id"])
        and is_name(each["synset"])
    ]


def _set_file_name(entry: object) -> None:
    """Set an image's file_name to the end of its coco_url, as the lvis package does.

    v1 has no file_name, and v0.5 names files of 2014. The folder is not the split: LVIS's val has
    photos of train2017 too.
    """
    url = entry.get("coco_url") if isinstance(entry, dict) else None
    if isinstance(entry, dict) and isinstance(url, str) and url.count("/") > 1:
        entry["file_name"] = "/".join(url.split("/")[-2:])


def _mount_of(image: Entry) -> str:
    folder, slash, _ = image["file_name"].partition("/")
    return folder if slash else _NO_FOLDER


def _file_of(image: Entry) -> File:
    return File(_mount_of(image), image["file_name"].partition("/")[2] or image["file_name"])


def _find_mounts(config: LvisIngest, counts: Counter[str]) -> dict[str, str]:
    """Find each COCO folder that images refer to."""
    if config.images and not dataset_files.exists(config.images):
        raise DatasetError(
            f"{config.images} does not exist; name another folder with --images. {_DOWNLOAD}"
        )
    find = partial(dataset_files.find_folder, config.images or config.root)
    # All photos may be in a single folder.
    flat = config.images or find("images")
    mounts = {name: find(name, f"images/{name}") or flat for name in counts}
    missing = [name for name, uri in mounts.items() if not uri]
    if missing:
        lines = "\n".join(
            f"{name}/ with {counts[name]} of the images is not in {config.images or config.root} "
            "or a zip there"
            for name in sorted(missing)
        )
        raise DatasetError(f"{lines}\nName its parent folder with --images. {_DOWNLOAD}")
    return {name: uri for name, uri in sorted(mounts.items()) if uri}


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(map(is_id, value))
