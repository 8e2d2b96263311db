#!/usr/bin/env python
"""The sweep of sweep_coco_r50.py on a laptop: the quickstart's model and shapes, 12 short trials.

python jobs/quickstart.py              once: it makes the shards

python jobs/sweep_quickstart.py

python jobs/sweep_quickstart.py --resume        goes on where it was stopped

The shards are the quickstart's own: one set serves every kernel size, and no trial ingests.
"""

from dataclasses import replace

from jobs.quickstart import RECIPE as QUICKSTART
from jobs.sweep_coco_r50 import ranges_around
from pipeline.cli import main_of_sweep
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
    main_of_sweep(SWEEP)
