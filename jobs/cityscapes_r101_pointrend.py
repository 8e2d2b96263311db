#!/usr/bin/env python
"""PointRend, ResNet-101 FPN, on Cityscapes' instances.

ray job submit --working-dir . -- python jobs/cityscapes_r101_pointrend.py --data.root s3://data/cityscapes

The paper reports AP 35.8 and AP50 63.5 on val (Table 4). Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.cityscapes_r101 import RECIPE as R101
from pipeline import main

RECIPE = replace(
    R101,
    name="cityscapes_r101_pointrend",
    model=replace(R101.model, mask_head=MaskHeadConfig(kind="pointrend")),
    tracking=replace(R101.tracking, model_name="pointrend-cityscapes"),
)

if __name__ == "__main__":
    main(RECIPE)
