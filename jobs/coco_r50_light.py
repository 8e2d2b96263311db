#!/usr/bin/env python
"""The light boundary squeeze with guided flow, ResNet-50 FPN, on COCO, 1x schedule.

ray job submit --working-dir . -- python jobs/coco_r50_light.py --data.root s3://data/coco

Ours: not in the paper. A squeeze for two fifths of the work of the released one (bsm/light.py). Not
yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.shared import SqueezeConfig
from jobs.coco_r50_guided import RECIPE as R50
from pipeline import main

RECIPE = replace(
    R50,
    name="coco_r50_light",
    model=replace(
        R50.model, mask_head=replace(R50.model.mask_head, squeeze=SqueezeConfig(variant="light"))
    ),
)

if __name__ == "__main__":
    main(RECIPE)
