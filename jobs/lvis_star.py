#!/usr/bin/env python
"""COCO models evaluated on LVIS*: LVIS's finer masks of COCO's 80 categories.

ray job submit --working-dir . -- python jobs/lvis_star.py r101 --data.root s3://data/coco

The split lvis-star is next to COCO's shards. To make it: python jobs/ingest.py lvis --version v0.5
--split val --only-coco-categories --root lvis --out s3://data/coco/lvis-star

Each row trains like its row of jobs/coco_r50.py or jobs/coco_r101.py (1x on train2017) and is
evaluated by LVIS's rules; the paper calls the result AP*.
"""

from dataclasses import replace

from bsm.configs.instance import MaskRCNNConfig
from jobs.coco_r50 import RECIPE as R50
from jobs.coco_r50 import MaskHead, head_rows
from jobs.coco_r101 import RECIPE as R101
from pipeline import main
from pipeline.recipe import Recipe
from pipeline.rows import Paper, Row

# AP* and AP*50 of Table 4, by mask head.
NUMBERS: dict[str, dict[MaskHead, tuple[float, float]]] = {
    "r50": {
        "squeeze": (39.7, 60.2),
        "plain": (37.4, 58.9),
        "pointrend": (39.3, 59.7),
        "bmask": (39.2, 59.5),
    },
    "r101": {
        "squeeze": (41.9, 62.4),
        "plain": (39.6, 61.2),
        "pointrend": (41.5, 62.1),
        "bmask": (41.2, 61.9),
    },
}


def lvis_rows(backbone: str, coco: Recipe[MaskRCNNConfig]) -> dict[str, Row]:
    """Evaluate the mask heads of a COCO recipe on LVIS*, which COCO's val does not compare with."""
    recipe = replace(
        coco,
        name=f"lvis_star_{backbone}",
        data=replace(coco.data, val_split="lvis-star"),
        tracking=replace(coco.tracking, model_name="bsm-coco-lvis-star"),
    )
    papers = {
        head: (Paper(table="4", split="LVIS* v0.5 val", mask_ap=ap, mask_ap50=ap50),)
        for head, (ap, ap50) in NUMBERS[backbone].items()
    }
    rows = head_rows(recipe, papers)
    return {
        backbone if head == "squeeze" else f"{backbone}-{head}": row for head, row in rows.items()
    }


ROWS = lvis_rows("r50", R50) | lvis_rows("r101", R101)

if __name__ == "__main__":
    main(ROWS)
