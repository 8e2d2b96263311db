#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze and its control on COCO, ResNet-50 FPN, 3x schedule.

ray job submit --working-dir . -- python jobs/coco_r50_3x.py --data.root s3://data/coco
"""

from dataclasses import replace

from jobs.coco_r50 import RECIPE as R50
from jobs.coco_r50 import head_rows
from pipeline import main
from pipeline.rows import Paper

RECIPE = replace(
    R50,
    name="coco_r50_3x",
    optim=replace(R50.optim, steps=270_000, decay_at=(210_000, 250_000)),
)

ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (Paper(table="3", split="test-dev2017", mask_ap=38.9),),
        "plain": (Paper(table="3", split="test-dev2017", mask_ap=37.3),),
    },
)

if __name__ == "__main__":
    main(ROWS)
