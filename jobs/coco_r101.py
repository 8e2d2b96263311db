#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze and its controls on COCO, ResNet-101 FPN, 1x schedule.

ray job submit --working-dir . -- python jobs/coco_r101.py --data.root s3://data/coco
"""

from dataclasses import replace

from jobs.coco_r50 import RECIPE as R50
from jobs.coco_r50 import head_rows
from pipeline import main
from pipeline.rows import Paper

RECIPE = replace(
    R50,
    name="coco_r101",
    model=replace(R50.model, backbone=replace(R50.model.backbone, name="resnet101")),
)

ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (
            Paper(table="1f", split="val2017", mask_ap=38.6),
            Paper(table="3", split="test-dev2017", mask_ap=38.6),
        ),
        "plain": (Paper(table="1f", split="val2017", mask_ap=37.1),),
        "bmask": (Paper(table="3", split="test-dev2017", mask_ap=38.0),),
    },
)

if __name__ == "__main__":
    main(ROWS)
