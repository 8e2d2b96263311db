#!/usr/bin/env python
"""PointRend, ResNet-50 FPN, on Cityscapes' instances.

ray job submit --working-dir . -- python jobs/cityscapes_r50_pointrend.py --data.root s3://data/cityscapes

The paper reports AP 35.1 and AP50 62.6 on val (Table 4). Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.cityscapes_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="cityscapes_r50_pointrend",
    model=replace(R50.model, mask_head=MaskHeadConfig(kind="pointrend")),
    tracking=replace(R50.tracking, model_name="pointrend-cityscapes"),
)

if __name__ == "__main__":
    main(RECIPE)
