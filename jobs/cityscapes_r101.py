#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze and its controls on Cityscapes' instances, R-101 FPN.

ray job submit --working-dir . -- python jobs/cityscapes_r101.py --data.root s3://data/cityscapes
"""

from dataclasses import replace

from jobs.cityscapes_r50 import RECIPE as R50
from jobs.coco_r50 import head_rows
from pipeline import main
from pipeline.rows import Paper

RECIPE = replace(
    R50,
    name="cityscapes_r101",
    model=replace(R50.model, backbone=replace(R50.model.backbone, name="resnet101")),
)

ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (Paper(table="4", split="val", cityscapes_ap=36.9, cityscapes_ap50=63.5),),
        "plain": (Paper(table="4", split="val", cityscapes_ap=33.6, cityscapes_ap50=61.8),),
        "pointrend": (Paper(table="4", split="val", cityscapes_ap=35.8, cityscapes_ap50=63.5),),
        "bmask": (Paper(table="4", split="val", cityscapes_ap=36.3, cityscapes_ap50=62.7),),
    },
)

if __name__ == "__main__":
    main(ROWS)
