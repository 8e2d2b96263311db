#!/usr/bin/env python
"""Mask R-CNN, ResNet-50 FPN, on COCO, 1x schedule, one image size.

ray job submit --working-dir . -- python jobs/coco_r50_800px_plain.py --data.root s3://data/coco

The paper reports mask AP 35.1 on test-dev (Table 3, without augmentation). Not yet run at full
scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.coco_r50_800px import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="coco_r50_800px_plain",
    model=replace(R50.model, mask_head=MaskHeadConfig(kind="plain")),
    tracking=replace(R50.tracking, model_name="mask-rcnn-coco"),
)

if __name__ == "__main__":
    main(RECIPE)
