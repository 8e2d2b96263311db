"""Cityscapes: street scenes with instances of 8 classes, and with label maps of 19.

Its site hands out leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, and both may stay as
they are. Beside the official files a folder may hold labelTrainIds.png, which cityscapesScripts
make of them.
"""

import logging
from collections import Counter

from pipeline.data import dataset_files
from pipeline.data.cityscapes_classes import (
    CLASSES,
    IGNORED,
    INSTANCE_CLASSES,
    TRAINED,
    CityscapesClass,
)
from pipeline.data.ingest_config import CityscapesIngest, CityscapesSemanticIngest
from pipeline.data.manifest import Category
from pipeline.data.semantic_fields import VOID
from pipeline.data.source_index import UNKNOWN_VALUE, FrameRules, LabelRules, Listing, Rules
from pipeline.data.sources.pairs import Pairs, list_pairs, warn_of_missing
from pipeline.errors import DatasetError

_log = logging.getLogger(__name__)

_PHOTO = "_leftImg8bit.png"
_INSTANCE_IDS = "_gtFine_instanceIds.png"
_POLYGONS = "_gtFine_polygons.json"
_LABEL_IDS = "_gtFine_labelIds.png"
_TRAIN_IDS = "_gtFine_labelTrainIds.png"

_WHERE = (
    "Cityscapes comes from www.cityscapes-dataset.com, after registration: "
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip; no zip need be unpacked"
)

_OFFICIAL = {"train": 2975, "val": 500, "test": 1525}
"""Frames of each split (cityscapesScripts' README)."""


def list_cityscapes(config: CityscapesIngest) -> Listing:
    """List frames with their instance ids, or with the polygons where these are missing.

    A category's id is Cityscapes' label id.

    Raises:
        DatasetError: something of it is not there.
        StorageError: it cannot be read.
    """
    return _listing(config, FrameRules(), (_INSTANCE_IDS, _POLYGONS), INSTANCE_CLASSES)


def list_cityscapes_semantic(config: CityscapesSemanticIngest) -> Listing:
    """List frames with their label maps: of label ids, or else of train ids.

    A category's id is Cityscapes' label id, its index the train id.

    Raises:
        DatasetError: something of it is not there.
        StorageError: it cannot be read.
    """
    _, labels = _folders(config)
    official = any(name.endswith(_LABEL_IDS) for name in dataset_files.list_files(labels))
    ending = _LABEL_IDS if official else _TRAIN_IDS
    rules = LabelRules(index_of_value=_index_of_value(ending))
    return _listing(config, rules, (ending,), TRAINED)


def _index_of_value(ending: str) -> tuple[int, ...]:
    index_of_value = [UNKNOWN_VALUE] * 256
    if ending == _TRAIN_IDS:
        index_of_value[IGNORED] = VOID
    for each in CLASSES:
        value = each.train_id if ending == _TRAIN_IDS else each.label_id
        if value >= 0:
            index_of_value[value] = VOID if each.ignored else each.train_id
    return tuple(index_of_value)


def _listing(
    config: CityscapesIngest | CityscapesSemanticIngest,
    rules: Rules,
    endings: tuple[str, ...],
    classes: tuple[CityscapesClass, ...],
) -> Listing:
    photos, labels = _folders(config)
    listing = list_pairs(
        Pairs(images=photos, labels=labels, image_endings=(_PHOTO,), label_endings=endings),
        rules=rules,
        categories=tuple(
            Category(category_id=each.label_id, category_index=index, name=each.name)
            for index, each in enumerate(classes)
        ),
        title=f"leftImg8bit and gtFine of {config.split}",
        where=_WHERE,
    )
    warn_of_missing(listing, config.split, _OFFICIAL.get(config.split, 0))
    used = Counter(each.entry["label_name"].rsplit("_", 1)[-1] for each in listing.images)
    _log.info(
        "ingest: labels are read from %s",
        ", ".join(f"{ending} ({count} frames)" for ending, count in used.items()),
    )
    return listing


def _folders(config: CityscapesIngest | CityscapesSemanticIngest) -> tuple[str, str]:
    """Find photos and labels, or say in one error what is not there."""
    names = [f"{kind}/{config.split}" for kind in ("leftImg8bit", "gtFine")]
    found = [dataset_files.find_folder(config.root, name) for name in names]
    missing = [name for name, place in zip(names, found, strict=True) if not place]
    photos, labels = found
    if missing or not photos or not labels:
        there = ", ".join(dataset_files.list_names(config.root)[:10]) or "nothing"
        raise DatasetError(
            f"{' and '.join(missing)}: not in {config.root}, nor in a zip there ({config.root} "
            f"has {there}); choose another --split, or another --root. {_WHERE}"
        )
    return photos, labels
