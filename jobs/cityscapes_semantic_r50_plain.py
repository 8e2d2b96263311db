#!/usr/bin/env python
"""DeepLabV3+, ResNet-50, on Cityscapes' label maps.

ray job submit --working-dir . -- python jobs/cityscapes_semantic_r50_plain.py --data.root s3://data/cityscapes_semantic

The paper reports mIoU 77.9 and boundary F 78.3, 77.0, 72.9, 62.3 at 12, 9, 5, 3 px on val (Table
5). Not yet run at full scale by us.
"""

from dataclasses import replace

from jobs.cityscapes_semantic_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="cityscapes_semantic_r50_plain",
    model=replace(R50.model, head=replace(R50.model.head, kind="plain")),
    tracking=replace(R50.tracking, model_name="deeplab-cityscapes-semantic"),
)

if __name__ == "__main__":
    main(RECIPE)
