"""BDD100K: 10,000 images with label maps of Cityscapes' 19 classes.

It exists in two layouts, images/10k/ with labels/sem_seg/masks/, and seg/. Both are accepted,
unpacked or zipped, with or without the enclosing folder bdd100k/.
"""

from pipeline.data import dataset_files
from pipeline.data.cityscapes_classes import CLASSES, TRAIN_CLASSES
from pipeline.data.ingest_config import BddIngest
from pipeline.data.manifest import Category
from pipeline.data.source_index import LabelRules, SourceIndex
from pipeline.data.sources.pairs import Pairs, list_pairs, make_missing_error, warn_if_incomplete

_DOWNLOAD = (
    "Download BDD100K from bdd-data.berkeley.edu or dl.cv.ethz.ch/bdd100k/data: "
    "bdd100k_images_10k.zip and bdd100k_sem_seg_labels_trainval.zip; the zips need not be unpacked"
)

_OFFICIAL = {"train": 7000, "val": 1000, "test": 2000}
"""Images of each split (BDD100K's paper)."""

_PREFIXES = ("", "bdd100k/")
_IMAGES = ("images/10k", "seg/images")
_LABELS = {"labels/sem_seg/masks": ".png", "seg/labels": "_train_id.png"}
"""Ending of the file names by folder."""


def list_bdd(config: BddIngest) -> SourceIndex:
    """List images with their label maps of train ids, which are also the category ids.

    Raises:
        DatasetError: a folder is missing.
        StorageError: a folder cannot be read.
    """
    images = _find(config, *_IMAGES)
    labels, ending = next(
        ((uri, end) for name, end in _LABELS.items() if (uri := _find(config, name))), ("", "")
    )
    if not images or not labels:
        missing: list[tuple[str, ...]] = [] if images else [_IMAGES]
        missing += [] if labels else [tuple(_LABELS)]
        folders = " and ".join(
            " or ".join(f"{name}/{config.split}" for name in names) for names in missing
        )
        raise make_missing_error(config.root, folders, download=_DOWNLOAD)
    index = list_pairs(
        Pairs(
            images=images,
            labels=labels,
            image_endings=(".jpg", ".jpeg", ".png"),
            label_endings=(ending,),
        ),
        rules=LabelRules.of({each.train_id: each.train_id for each in CLASSES}),
        categories=tuple(
            Category(category_id=each.train_id, category_index=each.train_id, name=each.name)
            for each in TRAIN_CLASSES
        ),
        title=f"images and masks of BDD100K {config.split}",
        download=_DOWNLOAD,
    )
    warn_if_incomplete(index, config.split, _OFFICIAL.get(config.split, 0))
    return index


def _find(config: BddIngest, *names: str) -> str:
    folders = [f"{prefix}{name}/{config.split}" for name in names for prefix in _PREFIXES]
    return dataset_files.find_folder(config.root, *folders) or ""
