"""A whole run, from a recipe to numbers: check, track, train, evaluate, register.

All that can be checked is checked before Ray starts. The same recipe under the same name goes on
from its last checkpoint; when nothing is left to train it is evaluated again.
"""

import logging
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bsm.checkpoints.weights import save_weights
from pipeline import storage
from pipeline.data.manifest import read_manifest
from pipeline.data.stream import local_batches
from pipeline.errors import TrainingError
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.evaluation.metrics import Metrics
from pipeline.evaluation.result import Evaluation
from pipeline.recipe import Recipe, fingerprint, reads_masks, to_json
from pipeline.registry import provenance
from pipeline.registry.register import RegisteredVersion, register
from pipeline.tracking import runs
from pipeline.tracking.runs import MetricLog, RunHandle
from pipeline.training import checkpoint, finished_run, progress
from pipeline.training.loop import Hooks, Outcome, TrainJob, train
from pipeline.training.preflight import Checked, check
from pipeline.training.sample_log import merge
from pipeline.training.step import World

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartOf:
    """What a run is part of, where it is not all that a job does."""

    parent_run_id: str = ""
    """MLflow's run above this one."""
    resume_command: str = ""
    """What a user types to go on; "" is the command that started this process."""
    callbacks: tuple[Any, ...] = ()
    """Ray Train's own, which are told of every checkpoint's metrics."""


def run(recipe: Recipe, *, part_of: PartOf = PartOf()) -> dict[str, Any]:
    """Run a recipe to its end.

    Args:
        recipe: what runs.
        part_of: what it is part of, a sweep for example.

    Returns:
        The RESULT line: name, steps, metrics by name (AP, AP50, ..., mask_ap, boundary_ap, ..., or
        miou, boundary_f_3px, ...), seconds of each phase, throughput, and where everything is.

    Raises:
        PipelineError: what went wrong, in the user's words.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "check"):
        checked = check(recipe)
        handle = runs.open_run(
            recipe,
            data_fingerprint=checked.identity.data_fingerprint,
            started_from=checked.started_from,
            parent_run_id=part_of.parent_run_id,
        )
    job = TrainJob(
        recipe=checked.recipe,
        identity=checked.identity,
        run_uri=checked.run_uri,
        resume_command=part_of.resume_command or resume_command(),
    )
    _log.info("%s", progress.header(_facts(checked, handle, job)))
    with _status_of(handle, job):
        with _timed(seconds, "train"):
            _start(recipe)
            outcome = _train(checked, job, handle, callbacks=part_of.callbacks)
        samples_uri, samples_sha256 = merge(
            checked.run_uri, steps=outcome.step, global_batch=recipe.optim.global_batch
        )
        with _timed(seconds, "evaluate"):
            place = _load_final(checked)
            evaluation = _evaluate(checked)
        with _timed(seconds, "register"):
            version = _keep_results(checked, handle, evaluation, step=outcome.step)
    return {
        "name": recipe.name,
        "steps": outcome.step,
        **_for_json(_coco_names(evaluation) | evaluation.metrics),
        "images": int(evaluation.metrics["images"]),
        "images_per_s": round(outcome.images_per_s, 3),
        "evaluated_images_per_s": round(evaluation.metrics["images_per_s"], 3),
        "seconds": round(sum(seconds.values()), 1),
        "seconds_by_phase": {name: round(value, 1) for name, value in seconds.items()},
        "peak_memory_gb": round(outcome.peak_memory_bytes / 1e9, 3),
        "checkpoint": place.uri,
        "weights": storage.join(checked.run_uri, "model.safetensors"),
        **evaluation.files,
        "samples": samples_uri,
        "samples_sha256": samples_sha256,
        "run_id": handle.run_id,
        "tracking": handle.url,
        "model": version.uri if version else "",
        "is_champion": version.is_champion if version else False,
    }


def resume_command() -> str:
    """Give the command that started this run: the same one goes on with it."""
    program, *arguments = sys.argv
    if not program.endswith(".py"):
        return "the same call again"
    path = os.path.relpath(program)
    command = shlex.join(["python", program if path.startswith("..") else path, *arguments])
    is_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return f"ray job submit --working-dir . -- {command}" if is_job else command


def _facts(checked: Checked, handle: RunHandle, job: TrainJob) -> list[tuple[str, str]]:
    recipe = checked.recipe
    optim, scale = recipe.optim, recipe.scale
    workers = max(scale.num_workers, 1)
    share = optim.global_batch // workers
    start = checked.place.step if checked.place else 0
    parameters = sum(p.numel() for p in checked.model.parameters())
    trained = sum(p.numel() for p in checked.model.parameters() if p.requires_grad)
    place = "this process" if scale.num_workers == 0 else f"{workers} workers"
    each = "a GPU each" if scale.use_gpu else f"{scale.cpus_per_worker:g} CPU each"
    return [
        ("recipe", f"{recipe.name}  fingerprint {fingerprint(checked.identity.recipe)}"),
        (
            "data",
            f"{checked.train_uri}  {checked.train_images} images, {len(checked.categories)} "
            f"categories  fingerprint {checked.identity.data_fingerprint}",
        ),
        ("audit", checked.verdict),
        ("workers", place if scale.num_workers == 0 else f"{place}, {each}"),
        (
            "batch",
            f"{optim.global_batch} images a step, {share} on each worker in passes of "
            f"{min(scale.images_per_microbatch, share)}",
        ),
        ("lr", f"{optim.lr:g} = {optim.lr_per_image:g} an image, warm-up {optim.warmup_steps}"),
        ("model", f"{parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained"),
        *([("starts from", checked.started_from)] if checked.started_from else []),
        ("steps", f"{start} to {optim.steps}, checkpoint every {recipe.checkpoint.every_steps}"),
        ("results", checked.run_uri),
        ("tracking", handle.url),
        ("resume", job.resume_command),
    ]


def _start(recipe: Recipe) -> None:
    if recipe.scale.num_workers:
        from pipeline.training.capacity import start_ray  # noqa: PLC0415  imports ray

        start_ray(recipe)


def _train(
    checked: Checked, job: TrainJob, handle: RunHandle, *, callbacks: tuple[Any, ...]
) -> Outcome:
    recipe = checked.recipe
    if checked.place is not None and checked.place.step >= recipe.optim.steps:
        _log.info(
            "run %s is finished (step %d of %d): nothing to train, evaluating it. "
            "For a new run give another --name.",
            recipe.name,
            checked.place.step,
            recipe.optim.steps,
        )
        return Outcome(step=checked.place.step)
    if recipe.scale.num_workers == 0:
        outcome = _train_here(checked, job, handle)
    else:
        from pipeline.training.ray_workers import train_on_workers  # noqa: PLC0415  imports ray

        outcome = train_on_workers(job, handle=handle, callbacks=callbacks)
    if outcome.bad:
        _log_file(handle, storage.join(checked.run_uri, "bad_batch.json"))
        raise TrainingError(outcome.bad)
    return outcome


def _train_here(checked: Checked, job: TrainJob, handle: RunHandle) -> Outcome:
    recipe = checked.recipe
    if recipe.scale.threads_per_worker:
        torch.set_num_threads(recipe.scale.threads_per_worker)
    if checked.place is not None:
        _log.info("going on from step %d: %s", checked.place.step, checked.place.uri)
    metrics = MetricLog(handle.tracking_uri, handle.run_id, handle.spool_uri)
    try:
        return train(
            job,
            world=World(device=torch.device("cuda" if recipe.scale.use_gpu else "cpu")),
            batches=lambda first_step: local_batches(
                checked.train_uri,
                recipe.data,
                seed=recipe.seed,
                global_batch=recipe.optim.global_batch,
                images_per_microbatch=recipe.scale.images_per_microbatch,
                first_step=first_step,
                stop_step=recipe.optim.steps,
                with_masks=reads_masks(recipe.model),
            ),
            hooks=Hooks(
                say=lambda line: _log.info("%s", line), log=metrics.log, saving=metrics.keep
            ),
            place=checked.place,
        )
    finally:
        metrics.close()


def _load_final(checked: Checked) -> checkpoint.Place:
    place = checkpoint.find_latest(checked.run_uri)
    if place is None:
        raise TrainingError(f"{checked.run_uri} has no checkpoint, although training ended")
    checked.model.load_state_dict(checkpoint.load(place)["model"])
    checked.model.eval()
    return place


def _evaluate(checked: Checked) -> Evaluation:
    recipe = checked.recipe
    evaluation = evaluate_model(
        checked.model,
        checked.val_uri,
        recipe.data,
        recipe.evaluation,
        out_uri=checked.run_uri,
        num_workers=recipe.scale.num_workers,
        use_gpu=recipe.scale.use_gpu,
    )
    _log.info("%s", evaluation.text)
    for kind, place in evaluation.files.items():
        _log.info("evaluate: %s in %s", kind.replace("_", " "), place)
    return evaluation


def _keep_results(
    checked: Checked, handle: RunHandle, evaluation: Evaluation, *, step: int
) -> RegisteredVersion | None:
    """Put weights and numbers beside the checkpoints, and all of it into the tracking store."""
    recipe, version = checked.identity.recipe, None
    measured = provenance.Measured.of(
        evaluation, fingerprint=checked.val_fingerprint, settings=recipe.evaluation
    )
    trained_on = provenance.TrainedOn.of(read_manifest(checked.train_uri))
    finished_run.keep_evidence(checked.run_uri, measured=measured, trained_on=trained_on)
    runs.log_metrics(
        handle, {k: v for k, v in evaluation.metrics.items() if math.isfinite(v)}, step=step
    )
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        weights = files / "model.safetensors"
        save_weights(checked.model, weights)
        storage.write_bytes_atomic(
            storage.join(checked.run_uri, "model.safetensors"), weights.read_bytes()
        )
        if recipe.tracking.model_name:
            version = register(
                handle,
                name=recipe.tracking.model_name,
                weights_path=weights,
                recipe=recipe,
                categories=checked.categories,
                measured=measured,
                trained_on=trained_on,
                started_from=checked.started_from,
            )
        weights.unlink()
        (files / "metrics.json").write_text(provenance.to_json(measured))
        (files / "run_recipe.json").write_text(to_json(recipe))
        kept = [storage.join(checked.run_uri, "samples.csv")]
        # Folders stay beside the run: they are as large as the split.
        kept += [uri for uri in evaluation.files.values() if uri.endswith(".json")]
        for uri in kept:
            (files / uri.rpartition("/")[2]).write_bytes(storage.read_bytes(uri))
        runs.log_artifacts(handle, files, folder="results")
    return version


def _log_file(handle: RunHandle, uri: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / uri.rsplit("/", 1)[-1]
        path.write_bytes(storage.read_bytes(uri))
        runs.log_artifacts(handle, path)


@contextmanager
def _status_of(handle: RunHandle, job: TrainJob) -> Iterator[None]:
    """Close the tracked run with what became of it."""
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        _log.info("Stopped. Go on from the last checkpoint with: %s", job.resume_command)
        raise
    finally:
        runs.finish(handle, status)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - began


def _coco_names(evaluation: Evaluation) -> dict[str, float]:
    """Give the mask numbers as COCO calls them, too."""
    segm = evaluation.by_metric.get("segm")
    return dict(segm.by_coco_name()) if isinstance(segm, Metrics) else {}


def _for_json(numbers: dict[str, float]) -> dict[str, float | None]:
    """Say null where there is no number: JSON knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
