#!/usr/bin/env python
"""Measure the save of a checkpoint of coco_r50 with its SHA-256, and without.

python tests/speed/checkpoint_save.py --folder runs/speed
"""

import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import tyro

from bsm.build import build_model
from jobs.coco_r50 import RECIPE
from pipeline import checksums
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Identity
from pipeline.training.optim import build_optimizer


def main(*, folder: Path, rounds: int = 5) -> None:
    """Save both ways in turn, and print the medians.

    Args:
        folder: for the checkpoints, which are deleted at the end.
        rounds: of which the median is taken, after one to warm up.
    """
    backbone = replace(RECIPE.model.backbone, weights="")
    model = build_model(replace(RECIPE.model, backbone=backbone))
    optimizer = build_optimizer(model, optim=RECIPE.optim)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    # Makes the momentum, half of a checkpoint.
    optimizer.update(lr=0.0, gradient_norm=torch.tensor(1.0))
    identity = Identity(recipe=RECIPE, categories=(), data_fingerprint="")
    hashes = {"with SHA-256": checksums.hash_bytes, "without": lambda _: ""}
    seconds: dict[str, list[float]] = {kind: [] for kind in hashes}
    for number in range(rounds + 1):
        for kind, sha256 in hashes.items():
            with mock.patch.object(checkpoint, "hash_bytes", sha256):
                began = time.perf_counter()
                ref = checkpoint.save(
                    str(folder), model=model, optimizer=optimizer, step=number, epoch=0,
                    identity=identity,
                )  # fmt: skip
                seconds[kind].append(time.perf_counter() - began)
    size = Path(ref.uri, "checkpoint.pt").stat().st_size
    shutil.rmtree(folder)
    for kind, times in seconds.items():
        print(f"{kind:14}{statistics.median(times[1:]):6.2f} s for {size / 1e6:.0f} MB")


if __name__ == "__main__":
    tyro.cli(main)
