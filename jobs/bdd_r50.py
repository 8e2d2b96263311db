#!/usr/bin/env python
"""DeepLabV3+ with the boundary squeeze, ResNet-50, on BDD100K's label maps.

ray job submit --working-dir . -- python jobs/bdd_r50.py --data.root s3://data/bdd

The paper reports mIoU 63.5 and boundary F 81.1, 79.9, 76.2, 67.9 at 12, 9, 5, 3 px on val (Table
5). Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.cityscapes_semantic_r50 import RECIPE as CITYSCAPES
from pipeline import main

RECIPE = replace(
    CITYSCAPES,
    name="bdd_r50",
    data=replace(CITYSCAPES.data, root="data/bdd"),
    optim=replace(CITYSCAPES.optim, steps=87_500),  # 100 epochs of 7,000 images
    tracking=replace(CITYSCAPES.tracking, model_name="bsm-bdd"),
)

if __name__ == "__main__":
    main(RECIPE)
