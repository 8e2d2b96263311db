#!/usr/bin/env python
"""DeepLabV3+ with the boundary squeeze and its controls on BDD100K's label maps, ResNet-50.

ray job submit --working-dir . -- python jobs/bdd_r50.py --data.root s3://data/bdd

The ResNet is timm's; jobs/cityscapes_semantic_r50.py has the flags of the authors'.
"""

from dataclasses import replace

from jobs.cityscapes_semantic_r50 import RECIPE as CITYSCAPES
from jobs.cityscapes_semantic_r50 import head_rows
from pipeline import main

RECIPE = replace(
    CITYSCAPES,
    name="bdd_r50",
    data=replace(CITYSCAPES.data, root="data/bdd"),
    optim=replace(CITYSCAPES.optim, steps=87_500),  # 100 epochs of 7,000 images
    tracking=replace(CITYSCAPES.tracking, model_name="bsm-bdd"),
)

ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (63.5, 81.1, 79.9, 76.2, 67.9),
        "plain": (61.2, 76.6, 75.4, 70.8, 61.6),
        "pointrend": (62.3, 79.1, 77.3, 72.6, 63.9),
    },
)

if __name__ == "__main__":
    main(ROWS)
