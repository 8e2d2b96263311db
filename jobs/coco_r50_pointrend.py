#!/usr/bin/env python
"""PointRend, ResNet-50 FPN, on COCO, 1x schedule: what coco_r50.py is compared with.

ray job submit --working-dir . -- python jobs/coco_r50_pointrend.py --data.root s3://data/coco

The paper reports mask AP 36.2 and boundary AP 23.3 on val2017 (Table 2). Not yet run at full scale
by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.coco_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="coco_r50_pointrend",
    model=replace(R50.model, mask_head=MaskHeadConfig(kind="pointrend")),
    tracking=replace(R50.tracking, model_name="pointrend-coco"),
)

if __name__ == "__main__":
    main(RECIPE)
