#!/usr/bin/env python
"""Mask R-CNN with the boundary squeeze and its controls on COCO, ResNet-50 FPN, 1x schedule.

ray job submit --working-dir . -- python jobs/coco_r50.py --data.root s3://data/coco

ray job submit --working-dir . -- python jobs/coco_r50.py plain --data.root s3://data/coco

The backbone starts from timm's pretrained weights, which timm downloads once. Without internet
access, name a file: --model.backbone.weights resnet50.safetensors
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from bsm.configs.instance import FineStagesConfig, MaskHeadConfig, MaskRCNNConfig
from bsm.configs.shared import (
    FpnBackboneConfig,
    GuidedFlowConfig,
    SqueezeConfig,
    TargetConfig,
)
from pipeline import main
from pipeline.recipe import DataConfig, OptimConfig, Recipe, ScaleConfig, TrackingConfig
from pipeline.rows import Paper, Row

# Each number is from the released configuration (playground/detection/coco/bs_mask).
RECIPE = Recipe(
    name="coco_r50",
    model=MaskRCNNConfig(
        num_classes=80,
        backbone=FpnBackboneConfig(name="resnet50", weights="timm", norm="frozen", freeze_at=2),
        # The released code's targets; ours are source "field".
        mask_head=MaskHeadConfig(targets=TargetConfig(source="roi")),
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

MaskHead = Literal["squeeze", "plain", "pointrend", "bmask"]

METHODS: dict[MaskHead, tuple[str, str]] = {
    "squeeze": ("BSM", "bsm"),
    "plain": ("Mask R-CNN", "mask-rcnn"),
    "pointrend": ("PointRend", "pointrend"),
    "bmask": ("BMask R-CNN", "bmask"),
}
"""For each mask head its name in the paper, and the prefix of its registered models."""


def head_rows(
    recipe: Recipe[MaskRCNNConfig], papers: Mapping[MaskHead, tuple[Paper, ...]]
) -> dict[str, Row]:
    """Make a row for each mask head from the recipe of the squeeze."""
    return {
        head: Row(with_head(recipe, head), METHODS[head][0], reported)
        for head, reported in papers.items()
    }


def with_head(recipe: Recipe[MaskRCNNConfig], head: MaskHead) -> Recipe[MaskRCNNConfig]:
    """Replace the squeeze of a recipe by another mask head."""
    if head == "squeeze":
        return recipe
    model_name = recipe.tracking.model_name.replace("bsm", METHODS[head][1])
    return replace(
        recipe,
        name=f"{recipe.name}_{head}",
        model=replace(
            recipe.model,
            mask_head=MaskHeadConfig(kind=head, targets=recipe.model.mask_head.targets),
        ),
        tracking=replace(recipe.tracking, model_name=model_name),
    )


# Ours: the flows are also trained along the way to the outline (bsm/guided_flow.py), and targets
# come from the squeeze field.
GUIDED = replace(
    RECIPE,
    name="coco_r50_guided",
    model=replace(
        RECIPE.model,
        mask_head=MaskHeadConfig(
            guided_flow=GuidedFlowConfig(weight=0.5), targets=TargetConfig(source="field")
        ),
    ),
)

# Ours: two fifths of the work of the released squeeze (bsm/light.py).
LIGHT = replace(
    GUIDED,
    name="coco_r50_light",
    model=replace(
        GUIDED.model,
        mask_head=replace(GUIDED.model.mask_head, squeeze=SqueezeConfig(variant="light")),
    ),
)

# Ours, for data whose masks are exact to the pixel (docs/study.md), at three times the plain head's
# work: the squeeze without a warp, then stages at 28 and 56 cells that read P2.
FINE = replace(
    RECIPE,
    name="coco_r50_fine",
    model=replace(
        RECIPE.model,
        mask_head=MaskHeadConfig(
            squeeze=SqueezeConfig(warp="none"),
            fine_stages=FineStagesConfig(channels=(48, 24)),
            targets=TargetConfig(source="field"),
        ),
    ),
)

ROWS = head_rows(
    RECIPE,
    {
        "squeeze": (
            Paper(table="2", split="val2017", mask_ap=36.9, boundary_ap=23.6),
            Paper(table="3", split="test-dev2017", mask_ap=37.0),
        ),
        "plain": (Paper(table="2", split="val2017", mask_ap=35.2, boundary_ap=21.3),),
        "pointrend": (Paper(table="2", split="val2017", mask_ap=36.2, boundary_ap=23.3),),
        "bmask": (
            Paper(table="2", split="val2017", mask_ap=36.6, boundary_ap=23.4),
            Paper(table="3", split="test-dev2017", mask_ap=36.7),
        ),
    },
) | {
    "guided": Row(GUIDED, "BSM with guided flow (ours)"),
    "light": Row(LIGHT, "light BSM with guided flow (ours)"),
    "fine": Row(FINE, "squeeze without a warp, with fine stages (ours)"),
}

if __name__ == "__main__":
    main(ROWS)
