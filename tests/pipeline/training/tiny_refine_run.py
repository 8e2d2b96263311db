"""A whole run of a refiner that takes seconds: shapes in real shards, and a very small model."""

from dataclasses import replace
from pathlib import Path

from pipeline.recipe import DataConfig, EvaluationConfig, Recipe
from tests.pipeline.refine.drawn_photos import TINY
from tests.pipeline.training.tiny_run import tiny_recipe


def refine_recipe(shards: Path, storage: Path, *, name: str, num_workers: int) -> Recipe:
    base = tiny_recipe(shards, storage, name=name, num_workers=num_workers)
    return replace(
        base,
        model=TINY,
        data=DataConfig(
            root=str(shards), train_split="train", val_split="val", short_edge_px=(96, 128)
        ),
        optim=replace(base.optim, steps=8),
        evaluation=EvaluationConfig(),
        tracking=replace(base.tracking, model_name="tiny-refiner"),
    )
