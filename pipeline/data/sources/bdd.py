"""BDD100K, its 10,000 images with label maps of Cityscapes' 19 classes.

It has been handed out in two layouts, images/10k/ with labels/sem_seg/masks/, and seg/; both are
taken, unpacked or not, with or without the folder bdd100k/ around them.
"""

from pipeline.data import dataset_files
from pipeline.data.cityscapes_classes import IGNORED, TRAINED
from pipeline.data.ingest_config import BddIngest
from pipeline.data.manifest import Category
from pipeline.data.semantic_fields import VOID
from pipeline.data.source_index import UNKNOWN_VALUE, LabelRules, Listing
from pipeline.data.sources.pairs import Pairs, list_pairs, warn_of_missing
from pipeline.errors import DatasetError

_WHERE = (
    "BDD100K comes from bdd-data.berkeley.edu or dl.cv.ethz.ch/bdd100k/data: "
    "bdd100k_images_10k.zip and bdd100k_sem_seg_labels_trainval.zip; no zip need be unpacked"
)

_OFFICIAL = {"train": 7000, "val": 1000, "test": 2000}
"""Images of each split (BDD100K's paper)."""

_AROUND = ("", "bdd100k/")
_IMAGES = ("images/10k", "seg/images")
_LABELS = {"labels/sem_seg/masks": ".png", "seg/labels": "_train_id.png"}
"""Folder, and how names in it end."""


def list_bdd(config: BddIngest) -> Listing:
    """List images with their label maps of train ids, which are the categories' ids too.

    Raises:
        DatasetError: something of it is not there.
        StorageError: it cannot be read.
    """
    images = _find(config, *_IMAGES)
    labels, ending = next(
        ((place, end) for name, end in _LABELS.items() if (place := _find(config, name))), ("", "")
    )
    if not images or not labels:
        wanted: list[tuple[str, ...]] = [] if images else [_IMAGES]
        wanted += [] if labels else [tuple(_LABELS)]
        told = " and ".join(
            " or ".join(f"{name}/{config.split}" for name in names) for names in wanted
        )
        there = ", ".join(dataset_files.list_names(config.root)[:10]) or "nothing"
        raise DatasetError(
            f"{told}: not in {config.root}, nor in a zip there ({config.root} has {there}); choose "
            f"another --split, or another --root. {_WHERE}"
        )
    listing = list_pairs(
        Pairs(
            images=images,
            labels=labels,
            image_endings=(".jpg", ".jpeg", ".png"),
            label_endings=(ending,),
        ),
        rules=LabelRules(index_of_value=_index_of_value()),
        categories=tuple(
            Category(category_id=each.train_id, category_index=each.train_id, name=each.name)
            for each in TRAINED
        ),
        title=f"images and masks of BDD100K {config.split}",
        where=_WHERE,
    )
    warn_of_missing(listing, config.split, _OFFICIAL.get(config.split, 0))
    return listing


def _find(config: BddIngest, *names: str) -> str:
    folders = [f"{around}{name}/{config.split}" for name in names for around in _AROUND]
    return dataset_files.find_folder(config.root, *folders) or ""


def _index_of_value() -> tuple[int, ...]:
    index_of_value = [UNKNOWN_VALUE] * 256
    index_of_value[IGNORED] = VOID
    for each in TRAINED:
        index_of_value[each.train_id] = each.train_id
    return tuple(index_of_value)
