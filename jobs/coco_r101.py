#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze, ResNet-101 FPN, on COCO, 1x schedule.

ray job submit --working-dir . -- python jobs/coco_r101.py --data.root s3://data/coco

The paper reports mask AP 38.6 on val2017 (Table 1f). Not yet run at full scale by us.
The trunk starts from timm's pretrained weights; see coco_r50.py.
"""

from dataclasses import replace

from jobs.coco_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="coco_r101",
    model=replace(R50.model, backbone=replace(R50.model.backbone, name="resnet101")),
)

if __name__ == "__main__":
    main(RECIPE)
