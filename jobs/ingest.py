#!/usr/bin/env python
"""Check a data set and write it as shards.

python jobs/ingest.py coco --root coco --split val2017 --out data/shards/val2017
python jobs/ingest.py lvis --root lvis --split train   --out data/shards/lvis/train
"""

from typing import Annotated

import tyro

from pipeline.cli import Result, run_verb
from pipeline.data.ingest import CocoIngest, LvisIngest, ingest_coco, ingest_lvis


def coco(config: Annotated[CocoIngest, tyro.conf.arg(name="")]) -> Result:
    """Ingest COCO, or your own in its layout: annotations/instances_SPLIT.json and SPLIT/*.jpg."""
    return ingest_coco(config)


def lvis(config: Annotated[LvisIngest, tyro.conf.arg(name="")]) -> Result:
    """Ingest LVIS v1 or v0.5; with --only-coco-categories the part that measures COCO models."""
    return ingest_lvis(config)


if __name__ == "__main__":
    run_verb({"coco": coco, "lvis": lvis})
