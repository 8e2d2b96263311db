#!/usr/bin/env python
"""DeepLabV3+ with the boundary squeeze, ResNet-101, on Cityscapes' label maps.

ray job submit --working-dir . -- python jobs/cityscapes_semantic_r101.py --data.root s3://data/cityscapes_semantic

The paper reports mIoU 80.6 and boundary F 82.9, 81.8, 78.7, 69.9 at 12, 9, 5, 3 px on val (Table
5). Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.cityscapes_semantic_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="cityscapes_semantic_r101",
    model=replace(R50.model, backbone=replace(R50.model.backbone, name="resnet101")),
)

if __name__ == "__main__":
    main(RECIPE)
