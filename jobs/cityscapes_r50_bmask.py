#!/usr/bin/env python
"""BMask R-CNN, ResNet-50 FPN, on Cityscapes' instances.

ray job submit --working-dir . -- python jobs/cityscapes_r50_bmask.py --data.root s3://data/cityscapes

The paper reports AP 35.7 and AP50 61.9 on val (Table 4). Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.cityscapes_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="cityscapes_r50_bmask",
    model=replace(R50.model, mask_head=MaskHeadConfig(kind="bmask")),
    tracking=replace(R50.tracking, model_name="bmask-cityscapes"),
)

if __name__ == "__main__":
    main(RECIPE)
