#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze, ResNet-50 FPN, on COCO, 1x schedule.

ray job submit --working-dir . -- python jobs/coco_r50.py --data.root s3://data/coco

The paper reports mask AP 36.9 and boundary AP 23.6 on val2017 (Table 2). Not yet run at full scale
by us. The trunk starts from timm's pretrained weights, which timm fetches once; without a way out,
name a file: --model.backbone.weights resnet50.safetensors
"""

from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.shared import FpnBackboneConfig
from pipeline import main
from pipeline.recipe import DataConfig, OptimConfig, Recipe, ScaleConfig, TrackingConfig

# Each number is that of the released configuration (playground/detection/coco/bs_mask).
RECIPE = Recipe(
    name="coco_r50",
    model=MaskRCNNConfig(
        num_classes=80,
        backbone=FpnBackboneConfig(name="resnet50", weights="timm", norm="frozen", freeze_at=2),
    ),
    data=DataConfig(
        root="data/coco",
        train_split="train2017",
        val_split="val2017",
        short_edge_px=(640, 672, 704, 736, 768, 800),
        test_short_edge_px=800,
        long_edge_px=1333,
    ),
    optim=OptimConfig(
        global_batch=16,
        lr_per_image=0.02 / 16,
        steps=90_000,
        warmup_steps=1000,
        decay_at=(60_000, 80_000),
    ),
    scale=ScaleConfig(num_workers=8, use_gpu=True, images_per_microbatch=2),
    tracking=TrackingConfig(model_name="bsm-coco"),
)

if __name__ == "__main__":
    main(RECIPE)
