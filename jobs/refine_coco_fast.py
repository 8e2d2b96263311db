#!/usr/bin/env python
"""Train a refiner that costs a third of a ResNet-50 detector, and is less sharp than refine_coco.

ray job submit --working-dir . -- python jobs/refine_coco_fast.py --data.root s3://data/coco

The finest cells of its decoder have four pixels, its crops are smaller and it has no squeeze.
docs/refine.md compares the two.
"""

from dataclasses import replace

from jobs.refine_coco import MODEL as SHARP
from jobs.refine_coco import RECIPE as COCO
from pipeline import main

MODEL = replace(
    SHARP,
    cell_px=2,
    crop_px=(128, 160),
    widths=(8, 16, 32, 48, 64, 64),
    squeeze="none",
)

RECIPE = replace(
    COCO,
    name="refine_coco_fast",
    model=MODEL,
    tracking=replace(COCO.tracking, model_name="refiner-coco-fast"),
)

if __name__ == "__main__":
    main(RECIPE)
