"""The first lines of a run: its data, workers, schedule, model, and the command that resumes it."""

import os
import shlex
import sys
from pathlib import Path

from pipeline.recipe import CheckpointConfig, OptimConfig, fingerprint
from pipeline.text import format_count
from pipeline.tracking.runs import RunHandle
from pipeline.training.loop import TrainJob
from pipeline.training.preflight import PreparedRun


def resume_command() -> str:
    """Return the command that started this run; the same command resumes it."""
    program, *arguments = sys.argv
    path = os.path.relpath(program)
    if program.endswith(".py"):
        command = shlex.join(["python", program if path.startswith("..") else path, *arguments])
    elif Path(program).name == "bsm":
        command = shlex.join(["bsm", *arguments])
    else:
        return "the same call again"
    is_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return f"ray job submit --working-dir . -- {command}" if is_job else command


def header_rows(prepared: PreparedRun, handle: RunHandle, job: TrainJob) -> list[tuple[str, str]]:
    """Return the rows of the header, a name and a text each."""
    recipe = prepared.recipe
    optim, scale = recipe.optim, recipe.scale
    worker_batch = optim.global_batch // max(scale.num_workers, 1)
    start = prepared.resume_from.step if prepared.resume_from else 0
    resources = "a GPU each" if scale.use_gpu else f"{scale.cpus_per_worker:g} CPU each"
    workers = format_count(scale.num_workers, "worker")
    return [
        ("recipe", f"{recipe.name}  fingerprint {fingerprint(prepared.identity.recipe)}"),
        (
            "data",
            f"{prepared.train_uri}  {format_count(prepared.train_images, 'image')}, "
            f"{format_count(len(prepared.categories), 'category')}  "
            f"fingerprint {prepared.identity.data_fingerprint}",
        ),
        ("audit", prepared.audit),
        ("workers", f"{workers}, {resources}" if scale.num_workers else "this process"),
        (
            "batch",
            f"{format_count(optim.global_batch, 'image')} per step, {worker_batch} per worker in "
            f"microbatches of {min(scale.microbatch, worker_batch)}",
        ),
        (
            "lr",
            f"{optim.lr:g} ({optim.lr_per_image:g} per image), "
            f"{format_count(optim.warmup_steps, 'warm-up step')}{_describe_backbone_lr(optim)}",
        ),
        (
            "model",
            f"{prepared.parameters / 1e6:.1f} M parameters, "
            f"{prepared.trained_parameters / 1e6:.1f} M trained",
        ),
        *([("starts from", prepared.started_from)] if prepared.started_from else []),
        ("steps", f"{start} to {optim.steps}, {_describe_checkpoints(recipe.checkpoint)}"),
        ("results", prepared.run_uri),
        ("tracking", handle.url),
        ("resume", job.resume_command),
    ]


def _describe_backbone_lr(optim: OptimConfig) -> str:
    factor, decay = optim.backbone_lr_factor, optim.layer_decay
    text = f"; backbone x {factor:g}" if factor != 1 else ""
    return text + (f"; x {decay:g} from each layer of it to the one before" if decay != 1 else "")


def _describe_checkpoints(config: CheckpointConfig) -> str:
    text = f"checkpoint every {config.every_steps}"
    if config.best_metric:
        text += f", the best {config.best_metric} is kept"
    if config.patience:
        text += f"; stops after {format_count(config.patience, 'evaluation')} without a better one"
    return text
