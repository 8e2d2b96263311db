#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze and its control on COCO, R-50, 1x, one image size.

ray job submit --working-dir . -- python jobs/coco_r50_800px.py --data.root s3://data/coco
"""

from dataclasses import replace

from jobs.coco_r50 import RECIPE as R50
from jobs.coco_r50 import head_rows
from pipeline import main
from pipeline.rows import Paper

RECIPE = replace(R50, name="coco_r50_800px", data=replace(R50.data, short_edge_px=(800,)))

# The rows of Table 3 without augmentation.
ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (Paper(table="3", split="test-dev2017", mask_ap=36.5),),
        "plain": (Paper(table="3", split="test-dev2017", mask_ap=35.1),),
    },
)

if __name__ == "__main__":
    main(ROWS)
