"""What a user reads while a run trains: a header, one line each `log_every` steps, and the end.

Plain text without bars, so that `ray job logs` reads like a terminal.
"""

import resource
import sys
from collections.abc import Mapping, Sequence

import torch

from pipeline.training.step import BadStep, Summary

_MEASURED = ("mask_ap", "boundary_ap", "box_ap", "miou", "boundary_f_3px")

_SHORT = {
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


def header(facts: Sequence[tuple[str, str]]) -> str:
    """Lay out the facts of a run, one a line, in two columns."""
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)


def metrics_of(
    summary: Summary, *, epoch: int, lr: float, global_batch: int, memory_bytes: int
) -> dict[str, float]:
    """Turn a window of steps into metrics by name."""
    return {
        **summary.means,
        "lr": lr,
        "epoch": float(epoch),
        "images_per_s": summary.steps * global_batch / max(summary.seconds, 1e-9),
        "data_share": min(summary.waited_s / max(summary.seconds, 1e-9), 1.0),
        "memory_gb": memory_bytes / 1e9,
        "step_s": summary.seconds / summary.steps,
    }


def line(metrics: Mapping[str, float], *, done: int, steps: int) -> str:
    """Write the progress line.

    Such as: step 120/300  eta 1m12s  loss 1.234 (mask .31 bnd .42)  lr 2.0e-02  11.8 img/s
    data 3%  mem 1.2 GB
    """
    parts = [f"{short} {_small(metrics[name])}" for name, short in _losses_in(metrics)]
    return "  ".join(
        [
            f"step {done}/{steps}",
            f"eta {duration((steps - done) * metrics['step_s'])}",
            f"loss {metrics['loss']:.3f} ({' '.join(parts)})",
            f"lr {metrics['lr']:.1e}",
            f"{metrics['images_per_s']:.1f} img/s",
            f"data {100 * metrics['data_share']:.0f}%",
            f"mem {metrics['memory_gb']:.1f} GB",
        ]
    )


def measured_line(metrics: Mapping[str, float], *, done: int) -> str:
    """Write what was measured at a checkpoint: step 100  mask_ap .21  boundary_ap .10."""
    shown = [name for name in _MEASURED if name in metrics]
    return "  ".join([f"step {done}", *(f"{name} {_small(metrics[name])}" for name in shown)])


def duration(seconds: float) -> str:
    """Write seconds as people say them: 42s, 1m12s, 5h12m, 2d03h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def bad_step_text(bad: BadStep, *, run_uri: str, resume: str, checkpoint_step: int) -> str:
    """Say which images gave a loss that is not finite, and what to try."""
    ids = bad.image_ids
    shown = ", ".join(map(str, ids[:16])) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
    wrong = sorted(
        {
            name
            for worker in bad.workers
            for name, value in worker["losses"].items()
            if not -float("inf") < value < float("inf")
        }
    )
    return (
        f"step {bad.step} (epoch {bad.epoch}, lr {bad.lr:.2e}): {', '.join(wrong)} not finite. "
        f"Images of the batch: {shown}. They are saved in {run_uri}/bad_batch.json; the last "
        f"checkpoint (step {checkpoint_step}) is from before it.\n"
        "Look at these images and their annotations first. When they are fine, the rate is too "
        "high for this batch; start a new run (--name NEW_NAME) with a lower "
        "--optim.lr-per-image, more --optim.warmup-steps or --optim.clip-norm 10.\n"
        f"To try the same step again: {resume}"
    )


def peak_memory_bytes(device: torch.device) -> int:
    """Give the most memory used so far: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def _losses_in(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    known = [(name, short) for name, short in _SHORT.items() if name in metrics]
    others = sorted(n for n in metrics if n.startswith("loss_") and n not in _SHORT)
    return known + [(name, name.removeprefix("loss_")) for name in others]


def _small(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if 0 <= value < 1 else f"{value:.2f}"
