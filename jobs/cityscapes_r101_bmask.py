#!/usr/bin/env python
"""BMask R-CNN, ResNet-101 FPN, on Cityscapes' instances.

ray job submit --working-dir . -- python jobs/cityscapes_r101_bmask.py --data.root s3://data/cityscapes

The paper reports AP 36.3 and AP50 62.7 on val (Table 4). Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.cityscapes_r101 import RECIPE as R101
from pipeline import main

RECIPE = replace(
    R101,
    name="cityscapes_r101_bmask",
    model=replace(R101.model, mask_head=MaskHeadConfig(kind="bmask")),
    tracking=replace(R101.tracking, model_name="bmask-cityscapes"),
)

if __name__ == "__main__":
    main(RECIPE)
