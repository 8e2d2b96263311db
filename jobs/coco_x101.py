#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze, ResNeXt-101 64x4d FPN, on COCO, 1x schedule.

ray job submit --working-dir . -- python jobs/coco_x101.py --data.root s3://data/coco

The paper reports mask AP 40.6 on val2017 (Table 1f); which ResNeXt it is, only its released
configuration says. Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.coco_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="coco_x101",
    model=replace(R50.model, backbone=replace(R50.model.backbone, name="resnext101_64x4d")),
)

if __name__ == "__main__":
    main(RECIPE)
