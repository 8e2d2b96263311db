#!/usr/bin/env python
"""Cascade Mask R-CNN, ResNet-50 FPN, on COCO, 1x: what coco_cascade_r50.py is compared with.

ray job submit --working-dir . -- python jobs/coco_cascade_r50_plain.py --data.root s3://data/coco

The paper reports mask AP 36.4 on test-dev (Table 3). Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.coco_cascade_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="coco_cascade_r50_plain",
    model=replace(R50.model, mask_head=MaskHeadConfig(kind="plain")),
    tracking=replace(R50.tracking, model_name="mask-rcnn-coco"),
)

if __name__ == "__main__":
    main(RECIPE)
