"""A whole run that takes seconds: shapes in real shards, and a very small Mask R-CNN."""

from dataclasses import replace
from pathlib import Path

from pipeline.data.ingest import CocoIngest, ingest_dataset
from pipeline.data.sources.shapes import write_shapes
from pipeline.drill import scene
from pipeline.recipe import CheckpointConfig, Recipe, TrackingConfig


def write_shards(folder: Path, *, train_images: int = 44, val_images: int = 4) -> Path:
    """Generate and ingest images; with 44 images and batches of 4 an epoch ends at step 11."""
    write_shapes(folder / "coco", train_images=train_images, val_images=val_images)
    for split in ("train", "val"):
        ingest_dataset(
            CocoIngest(
                root=str(folder / "coco"),
                split=split,
                out=str(folder / "shards" / split),
                workers=0,
            )
        )
    return folder / "shards"


def tiny_recipe(shards: Path | str, storage: Path | str, *, name: str, num_workers: int) -> Recipe:
    recipe = scene.tiny_recipe(shards, storage, name=name, num_workers=num_workers)
    return replace(
        recipe,
        optim=replace(recipe.optim, steps=13),
        checkpoint=CheckpointConfig(every_steps=5),
        tracking=TrackingConfig(log_every=4),
    )
