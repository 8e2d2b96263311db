#!/usr/bin/env python
"""The ablations of Table 1 and Fig. 6: the boundary squeeze on COCO with one thing changed, R-50.

ray job submit --working-dir . -- python jobs/ablation_coco_r50.py no-warp --data.root s3://data/coco

The default row is the unchanged squeeze of jobs/coco_r50.py. Table 1f is in jobs/coco_r101.py and
jobs/coco_x101.py. Fig. 6 plots the kernel sizes without numbers; the best one is 5.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from bsm.configs.shared import BandLoss, SqueezeConfig
from jobs.coco_r50 import RECIPE
from jobs.coco_r50 import ROWS as COCO_R50
from pipeline import main
from pipeline.rows import Paper, Row

# What changes, the part of Table 1, and its mask AP on val2017.
SQUEEZES = {
    "boundary": ("boundary branch only", "1a", 36.0, SqueezeConfig(branches=("boundary",))),
    "contraction": ("contraction only", "1a", 35.8, SqueezeConfig(branches=("contraction",))),
    "expansion": ("expansion only", "1a", 36.1, SqueezeConfig(branches=("expansion",))),
    "contraction-expansion": (
        "no boundary branch",
        "1a",
        36.5,
        SqueezeConfig(branches=("contraction", "expansion")),
    ),
    "no-fine-features": ("no P2 RoI features", "1c", 36.5, SqueezeConfig(fine_features=False)),
    "no-mask-feature-nor-conv": (
        "no mask feature, no boundary-to-mask convolution",
        "1d",
        36.0,
        SqueezeConfig(mask_feature=False, boundary_to_mask=False),
    ),
    "no-boundary-to-mask": (
        "no boundary-to-mask convolution",
        "1d",
        36.6,
        SqueezeConfig(boundary_to_mask=False),
    ),
    "no-mask-feature": ("no mask feature", "1d", 36.4, SqueezeConfig(mask_feature=False)),
    "no-warp": ("no feature warping", "1e", 36.0, SqueezeConfig(warp="none")),
    "dgmn": ("DGMN instead of flow", "1e", 36.6, SqueezeConfig(warp="dgmn")),
    "dcnv2": ("DCNv2 instead of flow", "1e", 36.8, SqueezeConfig(warp="dcnv2")),
}

BAND_LOSSES: dict[str, tuple[str, str, float, BandLoss]] = {
    "bce": ("BCE instead of Dice", "1b", 36.2, "bce"),
    "weighted-bce": ("weighted BCE instead of Dice", "1b", 36.6, "weighted_bce"),
    "bce-dice": ("BCE and Dice", "1b", 36.6, "bce_dice"),
    "weighted-bce-dice": ("weighted BCE and Dice", "1b", 36.5, "weighted_bce_dice"),
}

KERNEL_SIZES = (3, 7, 9, 11)

HEAD = RECIPE.model.mask_head


def ablation(name: str, what: str, head: MaskHeadConfig, *papers: Paper) -> Row:
    """Change the mask head of coco_r50."""
    recipe = replace(
        RECIPE,
        name=f"ablation_coco_r50_{name.replace('-', '_')}",
        model=replace(RECIPE.model, mask_head=head),
        # An ablation is not for use, so it does not become a version of bsm-coco.
        tracking=replace(RECIPE.tracking, model_name=""),
    )
    return Row(recipe, what, papers)


def on_val(table: str, mask_ap: float) -> Paper:
    """Name a number of Table 1."""
    return Paper(table=table, split="val2017", mask_ap=mask_ap)


ROWS = {
    "squeeze": COCO_R50["squeeze"],
    **{
        name: ablation(name, what, replace(HEAD, squeeze=squeeze), on_val(table, ap))
        for name, (what, table, ap, squeeze) in SQUEEZES.items()
    },
    **{
        name: ablation(name, what, replace(HEAD, band_loss=loss), on_val(table, ap))
        for name, (what, table, ap, loss) in BAND_LOSSES.items()
    },
    **{
        f"kernel-{size}": ablation(
            f"kernel-{size}",
            f"kernel size {size} (Fig. 6)",
            replace(HEAD, targets=replace(HEAD.targets, kernel_size=size)),
        )
        for size in KERNEL_SIZES
    },
}

if __name__ == "__main__":
    main(ROWS)
