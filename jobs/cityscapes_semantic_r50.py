#!/usr/bin/env python
"""DeepLabV3+ with the boundary squeeze, ResNet-50, on Cityscapes' label maps.

ray job submit --working-dir . -- python jobs/cityscapes_semantic_r50.py --data.root s3://data/cityscapes_semantic

The paper reports mIoU 79.5 and boundary F 80.9, 79.7, 76.4, 67.7 at 12, 9, 5, 3 px on val (Table
5). Not yet run at full scale by us. Numbers are those of sec. 4.2; what it leaves open is that of
the same authors' DeepLabV3+.

Images are tested whole, at their own size. The paper says that they are resized to 832 x 832, which
would change their shape and make its pixels of boundary F other ones; to do that: --data.test-size-
hw 832 832
"""

from bsm.configs.semantic import DeepLabConfig
from bsm.configs.shared import BackboneConfig
from pipeline import main
from pipeline.recipe import (
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    Recipe,
    ScaleConfig,
    TrackingConfig,
)

RECIPE = Recipe(
    name="cityscapes_semantic_r50",
    model=DeepLabConfig(
        num_classes=19,
        backbone=BackboneConfig(name="resnet50", weights="timm", norm="sync", freeze_at=0),
        output_stride=8,
    ),
    data=DataConfig(
        root="data/cityscapes_semantic",
        train_split="train",
        val_split="val",
        scale_range=(0.75, 2.0),
        crop_px=832,
        test_size_hw=None,
    ),
    optim=OptimConfig(
        global_batch=8,
        lr_per_image=0.01 / 8,
        weight_decay=5e-4,
        steps=37_188,  # 100 epochs of 2,975 images
        warmup_steps=0,
        schedule="poly",
        poly_power=0.9,
        decay_at=(),
    ),
    scale=ScaleConfig(num_workers=8, use_gpu=True, images_per_microbatch=1),
    evaluation=EvaluationConfig(radii_px=(3, 5, 9, 12)),
    tracking=TrackingConfig(model_name="bsm-cityscapes-semantic"),
)

if __name__ == "__main__":
    main(RECIPE)
