#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze, ResNet-50 FPN, on COCO, 1x schedule, one image size.

ray job submit --working-dir . -- python jobs/coco_r50_800px.py --data.root s3://data/coco

The paper reports mask AP 36.5 on test-dev (Table 3, without augmentation). Not yet run at full
scale by us.
"""

from dataclasses import replace

from jobs.coco_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="coco_r50_800px",
    data=replace(R50.data, short_edge_px=(800,)),
)

if __name__ == "__main__":
    main(RECIPE)
