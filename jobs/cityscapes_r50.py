#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze, ResNet-50 FPN, on Cityscapes' instances.

ray job submit --working-dir . -- python jobs/cityscapes_r50.py --data.root s3://data/cityscapes

The paper reports AP 36.1 and AP50 63.0 on val (Table 4): Cityscapes' own, of mask overlaps. Not yet
run at full scale by us. Numbers are those of sec. 4.1; warm-up is that of the released
configuration, which, unlike those of the other methods, starts from a detector trained on COCO.
Here all start from the same weights of ImageNet.

The run prints COCO's AP, and writes what was found as a submission, which the official rules take:
python jobs/evaluate.py --metric cityscapes-instance --truth gtFine/val --detections SUBMISSION
"""

from dataclasses import replace

from jobs.coco_r50 import RECIPE as COCO
from pipeline import main
from pipeline.recipe import DataConfig, EvaluationConfig, OptimConfig

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

if __name__ == "__main__":
    main(RECIPE)
