#!/usr/bin/env python
"""The ablations of Table 1 and Fig. 6: the boundary squeeze on COCO with one thing changed.

ray job submit --working-dir . -- python jobs/ablation_coco_r50.py no-warp --data.root s3://data/coco

ROW is one of these. After it stands the mask AP on val2017 that the paper reports:

    a  boundary 36.0, contraction 35.8, expansion 36.1, contraction-expansion 36.5
    b  bce 36.2, weighted-bce 36.6, bce-dice 36.6, weighted-bce-dice 36.5
    c  no-fine-features 36.5
    d  no-mask-feature-nor-conv 36.0, no-boundary-to-mask 36.6, no-mask-feature 36.4
    e  no-warp 36.0, dgmn 36.6, dcnv2 36.8
    6  kernel-3, kernel-7, kernel-9, kernel-11: less than with 5, the numbers are in a picture only

The whole squeeze (36.9) is jobs/coco_r50.py, Mask R-CNN (35.2) jobs/coco_r50_plain.py; each row of
part f is a job of its own, see jobs/README.md. Not yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.shared import BandLoss, SqueezeConfig
from jobs.coco_r50 import RECIPE as R50
from pipeline import main
from pipeline.recipe import Recipe

HEAD = R50.model.mask_head

SQUEEZES = {
    "boundary": SqueezeConfig(branches=("boundary",)),
    "contraction": SqueezeConfig(branches=("contraction",)),
    "expansion": SqueezeConfig(branches=("expansion",)),
    "contraction-expansion": SqueezeConfig(branches=("contraction", "expansion")),
    "no-fine-features": SqueezeConfig(fine_features=False),
    "no-mask-feature-nor-conv": SqueezeConfig(mask_feature=False, boundary_to_mask=False),
    "no-boundary-to-mask": SqueezeConfig(boundary_to_mask=False),
    "no-mask-feature": SqueezeConfig(mask_feature=False),
    "no-warp": SqueezeConfig(warp="none"),
    "dgmn": SqueezeConfig(warp="dgmn"),
    "dcnv2": SqueezeConfig(warp="dcnv2"),
}

BAND_LOSSES: dict[str, BandLoss] = {
    "bce": "bce",
    "weighted-bce": "weighted_bce",
    "bce-dice": "bce_dice",
    "weighted-bce-dice": "weighted_bce_dice",
}

KERNEL_SIZES = (3, 7, 9, 11)

HEADS = (
    {row: replace(HEAD, squeeze=squeeze) for row, squeeze in SQUEEZES.items()}
    | {row: replace(HEAD, band_loss=loss) for row, loss in BAND_LOSSES.items()}
    | {
        f"kernel-{size}": replace(HEAD, targets=replace(HEAD.targets, kernel_size=size))
        for size in KERNEL_SIZES
    }
)

RECIPES: dict[str, Recipe] = {
    row: replace(
        R50,
        name=f"ablation_coco_r50_{row.replace('-', '_')}",
        model=replace(R50.model, mask_head=head),
        # No version beside those of coco_r50.py: an ablation is not for use.
        tracking=replace(R50.tracking, model_name=""),
    )
    for row, head in HEADS.items()
}

if __name__ == "__main__":
    main(RECIPES)
