#!/usr/bin/env python
"""Boundary squeeze with guided flow, ResNet-50 FPN, on COCO, 1x schedule.

ray job submit --working-dir . -- python jobs/coco_r50_guided.py --data.root s3://data/coco

Ours: not in the paper. The way to the outline supervises both flows (bsm/guided_flow.py); nothing
changes at inference. Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.shared import GuidedFlowConfig
from jobs.coco_r50 import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="coco_r50_guided",
    model=replace(
        R50.model, mask_head=replace(R50.model.mask_head, guided_flow=GuidedFlowConfig(weight=0.5))
    ),
)

if __name__ == "__main__":
    main(RECIPE)
