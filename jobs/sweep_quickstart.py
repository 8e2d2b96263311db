#!/usr/bin/env python
"""Run the sweep of sweep_coco_r50.py on a laptop: 12 short trials of the quickstart's model.

python jobs/quickstart.py              run once, to write the shards

python jobs/sweep_quickstart.py

python jobs/sweep_quickstart.py --resume        resume a stopped sweep

All trials use the quickstart's shards, which work for every kernel size.
"""

from dataclasses import replace

from jobs.quickstart import RECIPE as QUICKSTART
from jobs.sweep_coco_r50 import ranges_around
from pipeline.cli import main_sweep
from pipeline.tuning.space import Sweep

SWEEP = Sweep(
    recipe=replace(
        QUICKSTART,
        name="sweep",
        optim=replace(QUICKSTART.optim, steps=180, decay_at=(140, 165)),
        checkpoint=replace(QUICKSTART.checkpoint, every_steps=60),
    ),
    ranges=ranges_around(QUICKSTART),
    trials=12,
)

if __name__ == "__main__":
    main_sweep(SWEEP)
