#!/usr/bin/env python
"""Mask R-CNN, ResNet-50 FPN, on Cityscapes' instances.

ray job submit --working-dir . -- python jobs/cityscapes_r50_plain.py --data.root s3://data/cityscapes

The paper reports AP 33.0 and AP50 50.0 on val (Table 4). So low an AP50 beside this AP is not
likely: with R-101 it is 61.8. Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.cityscapes_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="cityscapes_r50_plain",
    model=replace(R50.model, mask_head=MaskHeadConfig(kind="plain")),
    tracking=replace(R50.tracking, model_name="mask-rcnn-cityscapes"),
)

if __name__ == "__main__":
    main(RECIPE)
