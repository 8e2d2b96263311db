"""The lines of a run's log: progress every `log_every` steps, evaluations, and bad steps.

Plain lines without progress bars, so that `ray job logs` reads like a terminal.
"""

import math
import resource
import sys
from collections.abc import Mapping

import torch

from pipeline.progress import format_duration
from pipeline.recipe import Recipe
from pipeline.training.step import BadStep, Summary

_EVALUATED = (
    *("mask_ap", "boundary_ap", "box_ap", "miou", "boundary_f_3px", "boundary_iou"),
    "val_loss",
)
_MAX_IMAGES = 16

_LOSS_LABELS = {
    "loss_mask": "mask",
    "loss_segmentation": "seg",
    "loss_boundary": "bnd",
    "loss_contraction": "con",
    "loss_expansion": "exp",
    "loss_mask_point": "pnt",
    "loss_point": "pnt",
    "loss_auxiliary": "aux",
    "loss_flow_contraction": "fcon",
    "loss_flow_expansion": "fexp",
    "loss_class": "cls",
    "loss_box": "box",
    **{f"loss_class_stage{stage}": f"cls{stage}" for stage in (1, 2, 3)},
    **{f"loss_box_stage{stage}": f"box{stage}" for stage in (1, 2, 3)},
    "loss_objectness": "obj",
    "loss_proposal_box": "rpn",
}


def build_metrics(
    summary: Summary, *, epoch: int, lr: float, global_batch: int, memory_bytes: int
) -> dict[str, float]:
    """Turn a summary of steps into metrics by name."""
    seconds = max(summary.seconds, 1e-9)
    return {
        **summary.means,
        "lr": lr,
        "epoch": float(epoch),
        "images_per_s": summary.steps * global_batch / seconds,
        "data_share": min(summary.data_wait_s / seconds, 1.0),
        "memory_gb": memory_bytes / 1e9,
        "step_s": summary.seconds / summary.steps,
    }


def format_progress(metrics: Mapping[str, float], *, done: int, steps: int) -> str:
    """Format the progress line.

    For example: step 120/300  loss 1.23 (mask .31 bnd .42)  lr 0.02  11.8 img/s  data 3%
    mem 1.2 GB  eta 0:01:12
    """
    parts = [f"{label} {_format_short(metrics[name])}" for name, label in _label_losses(metrics)]
    return "  ".join(
        [
            f"step {done}/{steps}",
            f"loss {metrics['loss']:.3g} ({' '.join(parts)})",
            f"lr {metrics['lr']:.3g}",
            f"{metrics['images_per_s']:.1f} img/s",
            f"data {100 * metrics['data_share']:.0f}%",
            f"mem {metrics['memory_gb']:.1f} GB",
            f"eta {format_duration((steps - done) * metrics['step_s'])}",
        ]
    )


def format_evaluation(
    metrics: Mapping[str, float], *, done: int, best_step: int | None = None
) -> str:
    """Format the metrics of a checkpoint: step 100  mask_ap .21  boundary_ap .10  best step 50."""
    scores = [f"{n} {_format_short(metrics[n])}" for n in _EVALUATED if n in metrics]
    best = [] if best_step is None else [f"best step {best_step}"]
    return "  ".join([f"step {done}", *scores, *best])


def describe_bad_step(bad: BadStep, *, run_uri: str, resume: str, checkpoint_step: int) -> str:
    """Name the images whose loss is not finite, and suggest what to try."""
    ids = bad.image_ids
    images = ", ".join(map(str, ids[:_MAX_IMAGES]))
    if len(ids) > _MAX_IMAGES:
        images += f" and {len(ids) - _MAX_IMAGES} more"
    losses = {
        name
        for worker in bad.workers
        for name, value in worker["losses"].items()
        if not math.isfinite(value)
    }
    return (
        f"step {bad.step} (epoch {bad.epoch}, lr {bad.lr:.2e}): {', '.join(sorted(losses))} not "
        f"finite. Images of the batch: {images}. They are saved in {run_uri}/bad_batch.json; the "
        f"last checkpoint (step {checkpoint_step}) is from before this step.\n"
        "Check these images and their annotations first. If they are fine, the learning rate is "
        "too high for this batch: start a new run (--name NEW_NAME) with a lower "
        "--optim.lr-per-image, more --optim.warmup-steps or --optim.clip-norm 10.\n"
        f"To try the same step again: {resume}"
    )


def describe_out_of_memory(error: torch.OutOfMemoryError, recipe: Recipe, *, position: str) -> str:
    """Say what was asked of the GPU, without torch's advice, and what to change."""
    seen = str(error).partition(" Of the allocated memory")[0].partition(" If reserved")[0]
    fewer = max(recipe.scale.microbatch // 2, 1)
    smaller = "--data.crop-px" if recipe.model.task == "semantic" else "--data.short-edge-px"
    return (
        f"{position}: {seen}\nUse fewer images at once (--scale.images-per-microbatch {fewer}), "
        f"smaller ones ({smaller}), or check with nvidia-smi what else uses the GPU."
    )


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def _label_losses(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    known = [(name, label) for name, label in _LOSS_LABELS.items() if name in metrics]
    others = sorted(n for n in metrics if n.startswith("loss_") and n not in _LOSS_LABELS)
    return known + [(name, name.removeprefix("loss_")) for name in others]


def _format_short(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if 0 <= value < 1 else f"{value:.2f}"
