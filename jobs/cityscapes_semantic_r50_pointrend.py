#!/usr/bin/env python
"""DeepLabV3+ with PointRend, ResNet-50, on Cityscapes' label maps.

ray job submit --working-dir . -- python jobs/cityscapes_semantic_r50_pointrend.py --data.root s3://data/cityscapes_semantic

The paper reports mIoU 78.5 and boundary F 79.6, 78.5, 74.8, 64.1 at 12, 9, 5, 3 px on val (Table
5). Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.cityscapes_semantic_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="cityscapes_semantic_r50_pointrend",
    model=replace(R50.model, head=replace(R50.model.head, kind="pointrend")),
    tracking=replace(R50.tracking, model_name="deeplab-pointrend-cityscapes-semantic"),
)

if __name__ == "__main__":
    main(RECIPE)
