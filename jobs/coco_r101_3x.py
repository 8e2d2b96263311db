#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze, ResNet-101 FPN, on COCO, 3x schedule.

ray job submit --working-dir . -- python jobs/coco_r101_3x.py --data.root s3://data/coco

The paper reports mask AP 40.4 on test-dev (Table 3). Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.coco_r101 import RECIPE as R101
from pipeline import main

RECIPE = replace(
    R101,
    name="coco_r101_3x",
    optim=replace(R101.optim, steps=270_000, decay_at=(210_000, 250_000)),
)

if __name__ == "__main__":
    main(RECIPE)
