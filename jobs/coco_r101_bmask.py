#!/usr/bin/env python
"""BMask R-CNN, ResNet-101 FPN, on COCO, 1x schedule.

ray job submit --working-dir . -- python jobs/coco_r101_bmask.py --data.root s3://data/coco

The paper reports mask AP 38.0 on test-dev (Table 3). Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.coco_r101 import RECIPE as R101
from pipeline import main

RECIPE = replace(
    R101,
    name="coco_r101_bmask",
    model=replace(R101.model, mask_head=MaskHeadConfig(kind="bmask")),
    tracking=replace(R101.tracking, model_name="bmask-coco"),
)

if __name__ == "__main__":
    main(RECIPE)
