"""Save a checkpoint: how long training waits for ours, and for torch.save."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bsm.build import build_model
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import time_in_turn, timed
from pipeline.recipe import Recipe
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Identity
from pipeline.training.optim import build_optimizer


def bench_checkpoint(
    *, recipe: Recipe, folder: str, rounds: int, print_line: Callable[[str], None]
) -> Result:
    """Time the save of a recipe's model and optimizer, with random weights."""
    model_config: Any = recipe.model
    backbone = replace(model_config.backbone, weights="")
    model = build_model(replace(model_config, backbone=backbone))
    optimizer = build_optimizer(model, optim=recipe.optim)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    # Makes the momentum, half of a checkpoint.
    optimizer.update(lr=0.0, gradient_norm=torch.tensor(1.0))
    identity = Identity(recipe=recipe, categories=(), data_fingerprint="")
    out = Path(tempfile.mkdtemp(dir=folder or None))

    def save() -> None:
        checkpoint.save(
            str(out), model=model, optimizer=optimizer, step=1, epoch=0, identity=identity
        )

    def save_without_sum() -> None:
        with mock.patch.object(checkpoint, "hash_bytes", lambda _: ""):
            save()

    def save_with_torch() -> None:
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(content, out / "inline.pt")

    cases = {
        "torch.save": timed(save_with_torch),
        "ours": timed(save),
        "ours, without SHA-256": timed(save_without_sum),
    }
    try:
        runs = time_in_turn(cases, rounds=rounds, print_line=print_line)
        megabytes = (out / "inline.pt").stat().st_size / 1e6
    finally:
        shutil.rmtree(out)
    bars = [
        Bar(over="ours", under="torch.save", at_most=0.2, clock="wall"),
        Bar(over="ours", under="ours, without SHA-256", clock="wall"),
    ]
    return report(runs, bars, megabytes=round(megabytes))
