"""Cityscapes: street scenes with instances of 8 classes, and label maps of 19.

leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip need not be unpacked. Besides the official
files a folder may hold labelTrainIds.png, which cityscapesScripts make from them.
"""

import logging
from collections import Counter

from pipeline.data import dataset_files
from pipeline.data.cityscapes_classes import (
    CLASSES,
    INSTANCE_CLASSES,
    TRAIN_CLASSES,
    CityscapesClass,
)
from pipeline.data.ingest_config import CityscapesIngest, CityscapesSemanticIngest
from pipeline.data.manifest import Category
from pipeline.data.source_index import FrameRules, LabelRules, Rules, SourceIndex
from pipeline.data.sources.pairs import Pairs, list_pairs, make_missing_error, warn_if_incomplete

_log = logging.getLogger(__name__)

_PHOTO = "_leftImg8bit.png"
_INSTANCE_IDS = "_gtFine_instanceIds.png"
_POLYGONS = "_gtFine_polygons.json"
_LABEL_IDS = "_gtFine_labelIds.png"
_TRAIN_IDS = "_gtFine_labelTrainIds.png"

_DOWNLOAD = (
    "Download Cityscapes from www.cityscapes-dataset.com, after registration: "
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip; the zips need not be unpacked"
)

_OFFICIAL = {"train": 2975, "val": 500, "test": 1525}
"""Frames of each split (cityscapesScripts' README)."""


def list_cityscapes(config: CityscapesIngest) -> SourceIndex:
    """List frames with their instance ids, or with polygons if these are missing.

    The category_id is Cityscapes' label id.

    Raises:
        DatasetError: a folder is missing.
        StorageError: a folder cannot be read.
    """
    return _list_frames(config, FrameRules(), (_INSTANCE_IDS, _POLYGONS), INSTANCE_CLASSES)


def list_cityscapes_semantic(config: CityscapesSemanticIngest) -> SourceIndex:
    """List frames with their label maps of label ids, or of train ids if these are missing.

    The category_id is Cityscapes' label id, the category_index the train id.

    Raises:
        DatasetError: a folder is missing.
        StorageError: a folder cannot be read.
    """
    _, labels = _find_folders(config)
    if any(name.endswith(_LABEL_IDS) for name in dataset_files.list_files(labels)):
        ending, index = _LABEL_IDS, {each.label_id: each.train_id for each in CLASSES}
    else:
        ending, index = _TRAIN_IDS, {each.train_id: each.train_id for each in CLASSES}
    return _list_frames(config, LabelRules.of(index), (ending,), TRAIN_CLASSES)


def _list_frames(
    config: CityscapesIngest | CityscapesSemanticIngest,
    rules: Rules,
    endings: tuple[str, ...],
    classes: tuple[CityscapesClass, ...],
) -> SourceIndex:
    photos, labels = _find_folders(config)
    index = list_pairs(
        Pairs(images=photos, labels=labels, image_endings=(_PHOTO,), label_endings=endings),
        rules=rules,
        categories=tuple(
            Category(category_id=each.label_id, category_index=index, name=each.name)
            for index, each in enumerate(classes)
        ),
        title=f"leftImg8bit and gtFine of {config.split}",
        download=_DOWNLOAD,
    )
    warn_if_incomplete(index, config.split, _OFFICIAL.get(config.split, 0))
    used = Counter(each.entry["label_name"].rsplit("_", 1)[-1] for each in index.images)
    _log.info(
        "ingest: labels are read from %s",
        ", ".join(f"{ending} ({count} frames)" for ending, count in used.items()),
    )
    return index


def _find_folders(config: CityscapesIngest | CityscapesSemanticIngest) -> tuple[str, str]:
    """Find the folders of photos and labels, or report all that are missing."""
    names = [f"{kind}/{config.split}" for kind in ("leftImg8bit", "gtFine")]
    found = [dataset_files.find_folder(config.root, name) for name in names]
    photos, labels = found
    if not photos or not labels:
        missing = [name for name, uri in zip(names, found, strict=True) if not uri]
        raise make_missing_error(config.root, " and ".join(missing), download=_DOWNLOAD)
    return photos, labels
