#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze on COCO, ResNeXt-101 64x4d FPN, 3x schedule.

ray job submit --working-dir . -- python jobs/coco_x101_3x.py --data.root s3://data/coco
"""

from dataclasses import replace

from jobs.coco_r50 import head_rows
from jobs.coco_r50_3x import RECIPE as R50_3X
from jobs.coco_x101 import RECIPE as X101
from pipeline import main
from pipeline.rows import Paper

RECIPE = replace(X101, name="coco_x101_3x", optim=R50_3X.optim)

ROWS = head_rows(RECIPE, {"squeeze": (Paper(table="3", split="test-dev2017", mask_ap=41.6),)})

if __name__ == "__main__":
    main(ROWS)
