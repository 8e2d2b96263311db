#!/usr/bin/env python
"""DeepLabV3+ with PointRend, ResNet-50, on BDD100K's label maps.

ray job submit --working-dir . -- python jobs/bdd_r50_pointrend.py --data.root s3://data/bdd

The paper reports mIoU 62.3 and boundary F 79.1, 77.3, 72.6, 63.9 at 12, 9, 5, 3 px on val (Table
5). Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.bdd_r50 import RECIPE as BDD
from pipeline import main

RECIPE = replace(
    BDD,
    name="bdd_r50_pointrend",
    model=replace(BDD.model, head=replace(BDD.model.head, kind="pointrend")),
    tracking=replace(BDD.tracking, model_name="deeplab-pointrend-bdd"),
)

if __name__ == "__main__":
    main(RECIPE)
