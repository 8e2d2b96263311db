#!/usr/bin/env python
"""Train and register a small refiner on the shapes that the quickstart has drawn.

make quickstart && python jobs/refine_quickstart.py

Two workers, no GPU and no download; docs/refine.md uses it on masks of the quickstart's model. For
other shards: --data.root.
"""

from dataclasses import replace

from bsm.configs.shared import BackboneConfig
from jobs.quickstart import RECIPE as QUICKSTART
from jobs.refine_coco import MODEL
from jobs.refine_coco import RECIPE as COCO
from pipeline import main
from pipeline.recipe import DataConfig, EvaluationConfig

RECIPE = replace(
    COCO,
    name="refine_shapes",
    storage=QUICKSTART.storage,
    model=replace(
        MODEL,
        backbone=BackboneConfig(name="resnet10t", norm="group", freeze_at=0),
        train_px=96,
        crop_px=(96, 128),
    ),
    data=DataConfig(
        root=QUICKSTART.data.root, train_split="train", val_split="val", short_edge_px=(128,)
    ),
    optim=replace(COCO.optim, global_batch=8, lr_per_image=0.002 / 8, steps=300, warmup_steps=30),
    scale=QUICKSTART.scale,
    checkpoint=QUICKSTART.checkpoint,
    evaluation=EvaluationConfig(),
    tracking=replace(QUICKSTART.tracking, model_name="refiner-shapes"),
)

if __name__ == "__main__":
    main(RECIPE)
