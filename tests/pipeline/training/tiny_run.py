"""A whole run that takes seconds: shapes in real shards, and a very small Mask R-CNN."""

from pathlib import Path

from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig, ProposalConfig
from bsm.configs.shared import FpnBackboneConfig
from pipeline.data.ingest import CocoIngest, ingest_dataset
from pipeline.data.manifest import read_manifest
from pipeline.data.sources.shapes import write_shapes
from pipeline.recipe import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    Recipe,
    ScaleConfig,
    TrackingConfig,
)


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
    categories = read_manifest(f"{shards}/train").categories
    return Recipe(
        name=name,
        storage=str(storage),
        model=MaskRCNNConfig(
            num_classes=len(categories),
            backbone=FpnBackboneConfig(name="resnet18", norm="group", freeze_at=0, fpn_channels=16),
            proposals=ProposalConfig(
                anchor_sizes_px=(8.0, 16.0, 32.0, 64.0, 128.0),
                top_k_before_nms_train=50,
                top_k_before_nms_test=50,
                top_k_after_nms=20,
                samples_per_image=32,
            ),
            box_head=BoxHeadConfig(hidden=32, samples_per_image=16, detections_per_image=5),
            mask_head=MaskHeadConfig(channels=16, num_convs=1),
        ),
        data=DataConfig(
            root=str(shards),
            train_split="train",
            val_split="val",
            short_edge_px=(48, 64),
            test_short_edge_px=64,
            long_edge_px=96,
        ),
        optim=OptimConfig(
            global_batch=4, lr_per_image=0.001, steps=13, warmup_steps=4, decay_at=()
        ),
        scale=ScaleConfig(
            num_workers=num_workers,
            cpus_per_worker=0.5,
            images_per_microbatch=1,
            threads_per_worker=1,
        ),
        checkpoint=CheckpointConfig(every_steps=5),
        tracking=TrackingConfig(log_every=4),
        evaluation=EvaluationConfig(max_images=4),
    )
