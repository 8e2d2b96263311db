#!/usr/bin/env python
"""Mask R-CNN, ResNet-101 FPN, on COCO, 1x schedule: what coco_r101.py is compared with.

ray job submit --working-dir . -- python jobs/coco_r101_plain.py --data.root s3://data/coco

The paper reports mask AP 37.1 on val2017 (Table 1f). Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.coco_r101 import RECIPE as R101
from pipeline import main

RECIPE = replace(
    R101,
    name="coco_r101_plain",
    model=replace(R101.model, mask_head=MaskHeadConfig(kind="plain")),
    tracking=replace(R101.tracking, model_name="mask-rcnn-coco"),
)

if __name__ == "__main__":
    main(RECIPE)
