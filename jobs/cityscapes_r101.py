#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze, ResNet-101 FPN, on Cityscapes' instances.

ray job submit --working-dir . -- python jobs/cityscapes_r101.py --data.root s3://data/cityscapes

The paper reports AP 36.9 and AP50 63.5 on val (Table 4). Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.cityscapes_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="cityscapes_r101",
    model=replace(R50.model, backbone=replace(R50.model.backbone, name="resnet101")),
)

if __name__ == "__main__":
    main(RECIPE)
