"""A whole semantic run that takes seconds: label maps in real shards, and a small DeepLab."""

from pathlib import Path

from bsm.configs.semantic import DeepLabConfig, SemanticHeadConfig, SemanticTargetConfig
from bsm.configs.shared import BackboneConfig
from pipeline.recipe import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    Recipe,
    ScaleConfig,
    TrackingConfig,
)
from tests.pipeline.data.tiny_maps import write_map_shards


def write_shards(folder: Path) -> Path:
    """Generate and ingest images; with 10 images and batches of 4 an epoch ends inside a step."""
    write_map_shards(folder / "train", images=10, split="train")
    write_map_shards(folder / "val", images=3, split="val")
    shards = folder / "shards"
    shards.mkdir()
    for split in ("train", "val"):
        (folder / split / "shards" / split).rename(shards / split)
    return shards


def semantic_recipe(shards: Path, storage: Path, *, name: str, num_workers: int) -> Recipe:
    return Recipe(
        name=name,
        storage=str(storage),
        model=DeepLabConfig(
            num_classes=3,
            backbone=BackboneConfig(name="test_resnet", norm="batch", freeze_at=0),
            head=SemanticHeadConfig(
                aspp_rates=(1, 2),
                channels=16,
                low_level_channels=8,
                targets=SemanticTargetConfig(kernel_size=5),
            ),
        ),
        data=DataConfig(
            root=str(shards), train_split="train", val_split="val", crop_px=32, test_size_hw=None
        ),
        optim=OptimConfig(
            global_batch=4,
            lr_per_image=0.003,
            steps=8,
            warmup_steps=0,
            schedule="poly",
            decay_at=(),
        ),
        scale=ScaleConfig(
            num_workers=num_workers,
            cpus_per_worker=0.5,
            images_per_microbatch=2,
            threads_per_worker=1,
        ),
        checkpoint=CheckpointConfig(every_steps=3),
        tracking=TrackingConfig(log_every=2),
        evaluation=EvaluationConfig(radii_px=(1, 2)),
    )
