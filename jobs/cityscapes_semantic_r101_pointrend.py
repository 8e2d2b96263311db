#!/usr/bin/env python
"""DeepLabV3+ with PointRend, ResNet-101, on Cityscapes' label maps.

ray job submit --working-dir . -- python jobs/cityscapes_semantic_r101_pointrend.py --data.root s3://data/cityscapes_semantic

The paper reports mIoU 79.5 and boundary F 80.7, 78.6, 74.8, 64.6 at 12, 9, 5, 3 px on val (Table
5). Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.cityscapes_semantic_r101 import RECIPE as R101
from pipeline import main

RECIPE = replace(
    R101,
    name="cityscapes_semantic_r101_pointrend",
    model=replace(R101.model, head=replace(R101.model.head, kind="pointrend")),
    tracking=replace(R101.tracking, model_name="deeplab-pointrend-cityscapes-semantic"),
)

if __name__ == "__main__":
    main(RECIPE)
