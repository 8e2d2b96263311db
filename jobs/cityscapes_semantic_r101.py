#!/usr/bin/env python
"""DeepLabV3+ with the boundary squeeze and its controls on Cityscapes' label maps, ResNet-101.

ray job submit --working-dir . -- python jobs/cityscapes_semantic_r101.py --data.root s3://data/maps

The ResNet is timm's; jobs/cityscapes_semantic_r50.py has the flags of the authors' (resnet101s).
"""

from dataclasses import replace

from jobs.cityscapes_semantic_r50 import RECIPE as R50
from jobs.cityscapes_semantic_r50 import head_rows
from pipeline import main

RECIPE = replace(
    R50,
    name="cityscapes_semantic_r101",
    model=replace(R50.model, backbone=replace(R50.model.backbone, name="resnet101")),
)

ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (80.6, 82.9, 81.8, 78.7, 69.9),
        "plain": (78.9, 79.9, 78.2, 72.8, 62.5),
        "pointrend": (79.5, 80.7, 78.6, 74.8, 64.6),
    },
)

if __name__ == "__main__":
    main(ROWS)
