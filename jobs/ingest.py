#!/usr/bin/env python
"""Check a data set and write it as shards.

python jobs/ingest.py coco --root coco --split val2017 --out data/shards/val2017

--root is a folder or URI with the data set as its makers hand it out: unpacked, or still in zips.
What breaks a rule is listed at once, with the commands that go on without it.
"""

from typing import Annotated

import tyro

from pipeline.cli import Result, Verb, run_verb
from pipeline.data import ingest
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

    Images lie in SPLIT/, or in SPLIT.zip.
    """
    return ingest.ingest_coco(config)


def lvis(config: Annotated[LvisIngest, tyro.conf.arg(name="")]) -> Result:
    """LVIS v1 or v0.5; with --only-coco-categories LVIS*, which measures models of COCO.

    lvis_v1_SPLIT.json or its zip, and COCO's train2017/ and val2017/ or their zips.
    """
    return ingest.ingest_lvis(config)


def cityscapes(config: Annotated[CityscapesIngest, tyro.conf.arg(name="")]) -> Result:
    """Cityscapes, instances of its 8 classes; groups become crowds.

    leftImg8bit/SPLIT and gtFine/SPLIT, or the official zips. Instances come from instanceIds.png,
    or from polygons.json where there is none.
    """
    return ingest.ingest_cityscapes(config)


def cityscapes_semantic(
    config: Annotated[CityscapesSemanticIngest, tyro.conf.arg(name="")],
) -> Result:
    """Cityscapes, label maps of its 19 classes.

    leftImg8bit/SPLIT and gtFine/SPLIT, or the official zips. Labels come from labelIds.png, or from
    labelTrainIds.png where there are none.
    """
    return ingest.ingest_cityscapes_semantic(config)


def bdd(config: Annotated[BddIngest, tyro.conf.arg(name="")]) -> Result:
    """BDD100K, the label maps of its 10,000 images.

    images/10k/SPLIT and labels/sem_seg/masks/SPLIT, the older seg/images and seg/labels, or zips.
    """
    return ingest.ingest_bdd(config)


def semantic(config: Annotated[SemanticIngest, tyro.conf.arg(name="")]) -> Result:
    """Your own images with label PNGs, 8 bits a pixel, the value of a pixel being its class.

    images/SPLIT and labels/SPLIT with equal names, and --classes or a file classes.txt.
    """
    return ingest.ingest_semantic(config)


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
