#!/usr/bin/env python
"""Check a data set and write it as shards.

python jobs/ingest.py coco --root coco --split val2017 --out data/shards/val2017
"""

from typing import Annotated, Any

import tyro

from pipeline.cli import run_verb
from pipeline.data.ingest import CocoIngest, ingest_coco


def coco(config: Annotated[CocoIngest, tyro.conf.arg(name="")]) -> dict[str, Any]:
    """Ingest COCO: annotations/instances_SPLIT.json and SPLIT/*.jpg under one folder or URI."""
    return ingest_coco(config)


if __name__ == "__main__":
    run_verb({"coco": coco})
