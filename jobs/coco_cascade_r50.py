#!/usr/bin/env python
"""Cascade Mask R-CNN with the boundary squeeze and its controls on COCO, R-50 FPN, 1x schedule.

ray job submit --working-dir . -- python jobs/coco_cascade_r50.py --data.root s3://data/coco
"""

from dataclasses import replace

from jobs.coco_r50 import RECIPE as R50
from jobs.coco_r50 import head_rows
from pipeline import main
from pipeline.rows import Paper

RECIPE = replace(
    R50,
    name="coco_cascade_r50",
    model=replace(
        R50.model,
        box_head=replace(R50.model.box_head, kind="cascade"),
        # detectron2's cascade; the released configurations keep 1000.
        proposals=replace(R50.model.proposals, top_k_after_nms=2000),
    ),
)

ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (Paper(table="3", split="test-dev2017", mask_ap=37.9),),
        "plain": (Paper(table="3", split="test-dev2017", mask_ap=36.4),),
        "bmask": (Paper(table="3", split="test-dev2017", mask_ap=37.5),),
    },
)

if __name__ == "__main__":
    main(ROWS)
