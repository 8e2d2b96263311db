#!/usr/bin/env python
"""BMask R-CNN, ResNet-50 FPN, on COCO, 1x schedule: what coco_r50.py is compared with.

ray job submit --working-dir . -- python jobs/coco_r50_bmask.py --data.root s3://data/coco

The paper reports mask AP 36.6 and boundary AP 23.4 on val2017 (Table 2), 36.7 on test-dev (Table
3). Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.coco_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="coco_r50_bmask",
    model=replace(R50.model, mask_head=MaskHeadConfig(kind="bmask")),
    tracking=replace(R50.tracking, model_name="bmask-coco"),
)

if __name__ == "__main__":
    main(RECIPE)
