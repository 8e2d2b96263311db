#!/usr/bin/env python
"""Validate a data set and write it as shards.

python jobs/ingest.py coco --root coco --split val2017 --out data/shards/val2017

--root is a folder or URI with the data set as it was downloaded: unpacked, or still in zips. All
problems are listed at once, with the commands that continue without the bad images.
"""

from typing import Annotated

import tyro

from pipeline.cli import Result, Verb, run_verb
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import (
    BddIngest,
    CityscapesIngest,
    CityscapesSemanticIngest,
    CocoIngest,
    LvisIngest,
    SemanticIngest,
)


def coco(config: Annotated[CocoIngest, tyro.conf.arg(name="")]) -> Result:
    """COCO, or your own instances in its layout: annotations/instances_SPLIT.json and SPLIT/.

    Images are in SPLIT/, or in SPLIT.zip.
    """
    return ingest_dataset(config)


def lvis(config: Annotated[LvisIngest, tyro.conf.arg(name="")]) -> Result:
    """LVIS v1 or v0.5; with --only-coco-categories LVIS*, to evaluate models trained on COCO.

    lvis_v1_SPLIT.json or its zip, and COCO's train2017/ and val2017/ or their zips.
    """
    return ingest_dataset(config)


def cityscapes(config: Annotated[CityscapesIngest, tyro.conf.arg(name="")]) -> Result:
    """Cityscapes, instances of its 8 classes; groups become crowds.

    leftImg8bit/SPLIT and gtFine/SPLIT, or the official zips. Instances come from instanceIds.png,
    or from polygons.json if it is missing.
    """
    return ingest_dataset(config)


def cityscapes_semantic(
    config: Annotated[CityscapesSemanticIngest, tyro.conf.arg(name="")],
) -> Result:
    """Cityscapes, label maps of its 19 classes.

    leftImg8bit/SPLIT and gtFine/SPLIT, or the official zips. Labels come from labelIds.png, or from
    labelTrainIds.png if there are none.
    """
    return ingest_dataset(config)


def bdd(config: Annotated[BddIngest, tyro.conf.arg(name="")]) -> Result:
    """BDD100K, the label maps of its 10,000 images.

    images/10k/SPLIT and labels/sem_seg/masks/SPLIT, the older seg/images and seg/labels, or zips.
    """
    return ingest_dataset(config)


def semantic(config: Annotated[SemanticIngest, tyro.conf.arg(name="")]) -> Result:
    """Your own images with 8-bit label PNGs, whose pixel values are classes.

    images/SPLIT and labels/SPLIT with equal names, and --classes or a file classes.txt.
    """
    return ingest_dataset(config)


VERBS: dict[str, Verb] = {
    "coco": coco,
    "lvis": lvis,
    "cityscapes": cityscapes,
    "cityscapes-semantic": cityscapes_semantic,
    "bdd": bdd,
    "semantic": semantic,
}

if __name__ == "__main__":
    run_verb(VERBS)
