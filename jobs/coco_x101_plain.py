#!/usr/bin/env python
"""Mask R-CNN, ResNeXt-101 64x4d FPN, on COCO, 1x schedule: what coco_x101.py is compared with.

ray job submit --working-dir . -- python jobs/coco_x101_plain.py --data.root s3://data/coco

The paper reports mask AP 39.0 on val2017 (Table 1f). Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.coco_x101 import RECIPE as X101
from pipeline import main

RECIPE = replace(
    X101,
    name="coco_x101_plain",
    model=replace(X101.model, mask_head=MaskHeadConfig(kind="plain")),
    tracking=replace(X101.tracking, model_name="mask-rcnn-coco"),
)

if __name__ == "__main__":
    main(RECIPE)
