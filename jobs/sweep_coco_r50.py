#!/usr/bin/env python
"""Search kernel size, loss weights and learning rate of the boundary squeeze on COCO, R-50.

ray job submit --working-dir . -- python jobs/sweep_coco_r50.py --data.root s3://data/coco

python jobs/sweep_coco_r50.py --resume        resume a stopped sweep

Trials train for a quarter of the 1x schedule. They are evaluated on the first 1,000 images of
val2017, four times and at the end. The paper varied only the kernel size (Fig. 6) and found 5 best.
We have not run this at full scale yet.
"""

from dataclasses import replace

from jobs.coco_r50 import RECIPE as R50
from pipeline.cli import main_sweep
from pipeline.recipe import Recipe
from pipeline.tuning.space import Range, Sweep


def ranges_around(recipe: Recipe) -> tuple[Range, ...]:
    """Return ranges of a quarter to four times the boundary loss weights and the learning rate."""
    rate = recipe.optim.lr_per_image
    bands = ("boundary", "contraction", "expansion")
    return (
        *(Range(field=f"model.mask_head.loss_weights.{b}", low=0.25, high=4.0) for b in bands),
        Range(field="optim.lr_per_image", low=rate / 4, high=rate * 4),
    )


SWEEP = Sweep(
    recipe=replace(
        R50,
        name="sweep_coco_r50",
        optim=replace(R50.optim, steps=22_500, decay_at=(15_000, 20_000)),
        checkpoint=replace(R50.checkpoint, every_steps=5_500),
        evaluation=replace(R50.evaluation, max_images=1000),
    ),
    ranges=ranges_around(R50),
    trials=40,
)

if __name__ == "__main__":
    main_sweep(SWEEP)
