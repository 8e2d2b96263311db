#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze and its controls on Cityscapes' instances, R-50 FPN.

ray job submit --working-dir . -- python jobs/cityscapes_r50.py --data.root s3://data/cityscapes

The run prints COCO's AP and writes a submission. Cityscapes' own AP, which the paper reports, is
measured from the submission: python jobs/evaluate.py --metric cityscapes-instance
--truth gtFine/val --detections SUBMISSION
"""

from dataclasses import replace

from jobs.coco_r50 import RECIPE as COCO
from jobs.coco_r50 import head_rows
from pipeline import main
from pipeline.recipe import DataConfig, EvaluationConfig, OptimConfig
from pipeline.rows import Paper

# Numbers are from sec. 4.1; the warm-up is from the released configuration. That one starts from a
# detector trained on COCO, those of the other methods do not; here all start from ImageNet weights.
RECIPE = replace(
    COCO,
    name="cityscapes_r50",
    model=replace(COCO.model, num_classes=8),
    data=DataConfig(
        root="data/cityscapes",
        train_split="train",
        val_split="val",
        short_edge_px=(800, 832, 864, 896, 928, 960, 992, 1024),
        test_short_edge_px=1024,
        long_edge_px=2048,
    ),
    optim=OptimConfig(
        global_batch=8,
        lr_per_image=0.01 / 8,
        steps=24_000,
        warmup_steps=1000,
        decay_at=(18_000,),
    ),
    scale=replace(COCO.scale, images_per_microbatch=1),
    evaluation=EvaluationConfig(submission=True),
    tracking=replace(COCO.tracking, model_name="bsm-cityscapes"),
)

ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (Paper(table="4", split="val", cityscapes_ap=36.1, cityscapes_ap50=63.0),),
        # So low an AP50 is unlikely next to this AP: with R-101 it is 61.8.
        "plain": (Paper(table="4", split="val", cityscapes_ap=33.0, cityscapes_ap50=50.0),),
        "pointrend": (Paper(table="4", split="val", cityscapes_ap=35.1, cityscapes_ap50=62.6),),
        "bmask": (Paper(table="4", split="val", cityscapes_ap=35.7, cityscapes_ap50=61.9),),
    },
)

if __name__ == "__main__":
    main(ROWS)
