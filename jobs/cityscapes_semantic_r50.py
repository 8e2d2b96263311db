#!/usr/bin/env python
"""DeepLabV3+ with the boundary squeeze and its controls on Cityscapes' label maps, ResNet-50.

ray job submit --working-dir . -- python jobs/cityscapes_semantic_r50.py --data.root s3://data/maps

Images are tested whole, at their own size. The paper resizes them to 832 x 832, which would change
their shape and the meaning of a pixel in boundary F; to do that: --data.test-size-hw 832 832

The ResNet is timm's. To train with the stem and the dilations of the same authors' DeepLabV3+:
--model.backbone.name resnet50s --model.dilate-first-blocks
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

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
from pipeline.rows import Paper, Row

# Numbers are from sec. 4.2; the others are from the same authors' DeepLabV3+.
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

Head = Literal["squeeze", "plain", "pointrend"]

METHODS: dict[Head, tuple[str, str]] = {
    "squeeze": ("BSM", "bsm"),
    "plain": ("DeepLabV3+", "deeplab"),
    "pointrend": ("PointRend", "deeplab-pointrend"),
}
"""For each head its name in the paper, and the prefix of its registered models."""


def head_rows(
    recipe: Recipe[DeepLabConfig], numbers: Mapping[Head, tuple[float, ...]]
) -> dict[str, Row]:
    """Make a row for each head from the recipe of the squeeze.

    Args:
        recipe: the recipe of the squeeze.
        numbers: Table 5 by head: mIoU, and boundary F at 12, 9, 5 and 3 px.
    """
    return {
        head: Row(
            with_head(recipe, head),
            METHODS[head][0],
            (
                Paper(
                    table="5",
                    split="val",
                    miou=miou,
                    boundary_f_12px=f_12px,
                    boundary_f_9px=f_9px,
                    boundary_f_5px=f_5px,
                    boundary_f_3px=f_3px,
                ),
            ),
        )
        for head, (miou, f_12px, f_9px, f_5px, f_3px) in numbers.items()
    }


def with_head(recipe: Recipe[DeepLabConfig], head: Head) -> Recipe[DeepLabConfig]:
    """Replace the squeeze of a recipe by another head."""
    if head == "squeeze":
        return recipe
    model_name = recipe.tracking.model_name.replace("bsm", METHODS[head][1])
    return replace(
        recipe,
        name=f"{recipe.name}_{head}",
        model=replace(recipe.model, head=replace(recipe.model.head, kind=head)),
        tracking=replace(recipe.tracking, model_name=model_name),
    )


ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (79.5, 80.9, 79.7, 76.4, 67.7),
        "plain": (77.9, 78.3, 77.0, 72.9, 62.3),
        "pointrend": (78.5, 79.6, 78.5, 74.8, 64.1),
    },
)

if __name__ == "__main__":
    main(ROWS)
