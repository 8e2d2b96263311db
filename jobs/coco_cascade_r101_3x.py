#!/usr/bin/env python
"""Cascade Mask R-CNN with the boundary squeeze, ResNet-101 FPN, on COCO, 3x schedule.

ray job submit --working-dir . -- python jobs/coco_cascade_r101_3x.py --data.root s3://data/coco

The paper reports mask AP 41.0 on test-dev (Table 3). Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.coco_cascade_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="coco_cascade_r101_3x",
    model=replace(R50.model, backbone=replace(R50.model.backbone, name="resnet101")),
    optim=replace(R50.optim, steps=270_000, decay_at=(210_000, 250_000)),
)

if __name__ == "__main__":
    main(RECIPE)
