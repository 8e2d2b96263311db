#!/usr/bin/env python
"""Train a refiner, which sharpens masks of any source, on COCO's masks or your own.

ray job submit --working-dir . -- python jobs/refine_coco.py --data.root s3://data/coco

It learns from instance shards alone: true masks are damaged as detectors and annotators do, and the
refiner repairs them. It needs no detector and no categories. jobs/refine.py uses it.

The backbone starts from timm's pretrained weights, which timm downloads once. Without internet
access, name a file: --model.backbone.weights tf_efficientnet_lite0.safetensors
"""

from dataclasses import replace

from bsm.configs.refine import RefinerConfig
from pipeline import main
from pipeline.recipe import DataConfig, OptimConfig, Recipe, ScaleConfig, TrackingConfig

DEFAULTS = RefinerConfig()
MODEL = replace(DEFAULTS, backbone=replace(DEFAULTS.backbone, weights="timm"))

RECIPE = Recipe(
    name="refine_coco",
    model=MODEL,
    data=DataConfig(
        root="data/coco",
        train_split="train2017",
        val_split="val2017",
        # COCO's own size: crops show objects as sharp as the photo has them.
        short_edge_px=(480,),
    ),
    optim=OptimConfig(
        optimizer="adamw",
        global_batch=16,
        lr_per_image=0.002 / 16,
        weight_decay=0.01,
        steps=20_000,
        warmup_steps=500,
        warmup_factor=0.05,
        schedule="cosine",
        clip_norm=5.0,
    ),
    scale=ScaleConfig(num_workers=8, use_gpu=True, images_per_microbatch=2),
    tracking=TrackingConfig(model_name="refiner-coco"),
)

if __name__ == "__main__":
    main(RECIPE)
