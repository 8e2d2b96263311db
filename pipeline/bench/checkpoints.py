"""Save a checkpoint: how long training waits for ours, and for torch.save.

Ours copies the state and writes it in a thread, with a SHA-256 and to the disk (fsync); torch.save
writes to a file inline. The time to the end of our write is shown, too.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bsm.build import build_model
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import Case, Sample, time_in_turn, timed
from pipeline.recipe import Recipe
from pipeline.training.checkpoint import Identity
from pipeline.training.checkpoint_writer import CheckpointWriter
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

    writer = CheckpointWriter()

    def save() -> None:
        writer.save(
            str(out),
            model=model,
            optimizer=optimizer,
            step=1,
            epoch=0,
            identity=identity,
            then=lambda: None,
        )

    def save_to_the_end() -> None:
        save()
        writer.wait()

    def save_and_go_on() -> Sample:
        sample = timed(save)()
        # The others are not timed beside it.
        writer.wait()
        return sample

    def save_with_torch() -> None:
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(content, out / "inline.pt")

    cases: dict[str, Case] = {
        "torch.save": timed(save_with_torch),
        "ours": save_and_go_on,
        "ours, to the end of the write": timed(save_to_the_end),
    }
    try:
        runs = time_in_turn(cases, rounds=rounds, print_line=print_line)
        megabytes = (out / "inline.pt").stat().st_size / 1e6
    finally:
        writer.close()
        shutil.rmtree(out)
    bars = [
        Bar(over="ours", under="torch.save", at_most=0.2, clock="wall"),
        Bar(over="ours, to the end of the write", under="torch.save", clock="wall"),
    ]
    return report(runs, bars, megabytes=round(megabytes))
