#!/usr/bin/env python
"""Models of COCO measured on LVIS*: what LVIS says of COCO's 80 categories, with finer masks.

ray job submit --working-dir . -- python jobs/lvis_star.py r50 --data.root s3://data/coco

Beside COCO's shards lies lvis-star, made by: python jobs/ingest.py lvis --version v0.5 --split val
--only-coco-categories --root lvis --out s3://data/coco/lvis-star

The paper reports AP* and AP*50 on val of LVIS v0.5 (Table 4):

    r50-plain      37.4  58.9   Mask R-CNN        r101-plain      39.6  61.2
    r50-pointrend  39.3  59.7   PointRend         r101-pointrend  41.5  62.1
    r50-bmask      39.2  59.5   BMask R-CNN       r101-bmask      41.2  61.9
    r50            39.7  60.2   BSM               r101            41.9  62.4

Each row trains what the job of COCO trains, 1x on train2017, and is measured by LVIS's rules. Not
yet run at full scale by us.
"""

from dataclasses import replace

from bsm.configs.instance import MaskHeadConfig
from jobs.coco_r50 import RECIPE as R50
from jobs.coco_r50_bmask import RECIPE as R50_BMASK
from jobs.coco_r50_plain import RECIPE as R50_PLAIN
from jobs.coco_r50_pointrend import RECIPE as R50_POINTREND
from jobs.coco_r101 import RECIPE as R101
from jobs.coco_r101_bmask import RECIPE as R101_BMASK
from jobs.coco_r101_plain import RECIPE as R101_PLAIN
from pipeline import main
from pipeline.recipe import Recipe

# The one detector of Table 4 that stands in no table of COCO.
R101_POINTREND = replace(
    R101,
    model=replace(R101.model, mask_head=MaskHeadConfig(kind="pointrend")),
    tracking=R50_POINTREND.tracking,
)


def measured_on_lvis(row: str, recipe: Recipe) -> Recipe:
    """Name the split to measure on; its numbers do not compare with those of COCO's val."""
    name = f"lvis_star_{row.replace('-', '_')}"
    registered = f"{recipe.tracking.model_name}-lvis-star"
    return replace(
        recipe,
        name=name,
        data=replace(recipe.data, val_split="lvis-star"),
        tracking=replace(recipe.tracking, model_name=registered),
    )


RECIPES = {
    row: measured_on_lvis(row, recipe)
    for row, recipe in (
        ("r50", R50),
        ("r50-plain", R50_PLAIN),
        ("r50-pointrend", R50_POINTREND),
        ("r50-bmask", R50_BMASK),
        ("r101", R101),
        ("r101-plain", R101_PLAIN),
        ("r101-pointrend", R101_POINTREND),
        ("r101-bmask", R101_BMASK),
    )
}

if __name__ == "__main__":
    main(RECIPES)
