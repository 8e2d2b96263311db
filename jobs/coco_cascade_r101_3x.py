#!/usr/bin/env python
"""Cascade Mask R-CNN with the boundary squeeze and its control on COCO, R-101 FPN, 3x schedule.

ray job submit --working-dir . -- python jobs/coco_cascade_r101_3x.py --data.root s3://data/coco
"""

from dataclasses import replace

from jobs.coco_cascade_r50 import RECIPE as R50
from jobs.coco_r50 import head_rows
from jobs.coco_r50_3x import RECIPE as R50_3X
from pipeline import main
from pipeline.rows import Paper

RECIPE = replace(
    R50,
    name="coco_cascade_r101_3x",
    model=replace(R50.model, backbone=replace(R50.model.backbone, name="resnet101")),
    optim=R50_3X.optim,
)

ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (Paper(table="3", split="test-dev2017", mask_ap=41.0),),
        "bmask": (Paper(table="3", split="test-dev2017", mask_ap=40.5),),
    },
)

if __name__ == "__main__":
    main(ROWS)
