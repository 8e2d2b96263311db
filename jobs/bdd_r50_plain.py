#!/usr/bin/env python
"""DeepLabV3+, ResNet-50, on BDD100K's label maps.

ray job submit --working-dir . -- python jobs/bdd_r50_plain.py --data.root s3://data/bdd

The paper reports mIoU 61.2 and boundary F 76.6, 75.4, 70.8, 61.6 at 12, 9, 5, 3 px on val (Table
5). Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.bdd_r50 import RECIPE as BDD
from pipeline import main

RECIPE = replace(
    BDD,
    name="bdd_r50_plain",
    model=replace(BDD.model, head=replace(BDD.model.head, kind="plain")),
    tracking=replace(BDD.tracking, model_name="deeplab-bdd"),
)

if __name__ == "__main__":
    main(RECIPE)
