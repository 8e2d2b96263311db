"""A whole run, from a recipe to a registered model: check, track, train, evaluate, register.

Everything that can be checked is checked before Ray starts. The same recipe under the same name
resumes from its last checkpoint; a finished run is only evaluated again.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from bsm.build import SkipRandomInit, build_model
from bsm.checkpoints.weights import save_weights
from bsm.configs.models import without_weights
from pipeline import checksums, storage
from pipeline.data.manifest import read_manifest
from pipeline.data.stream import local_batches
from pipeline.errors import TrainingError
from pipeline.evaluation.checkpoint_metrics import describe_choice, load_metrics
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.evaluation.metrics import CocoMetrics
from pipeline.evaluation.result import Evaluation
from pipeline.recipe import (
    Recipe,
    reads_masks,
    to_json,
)
from pipeline.registry import provenance
from pipeline.registry.comparison import finds_nothing
from pipeline.registry.register import RegisteredVersion, register
from pipeline.rows import Row
from pipeline.run_report.run_folder import save_row
from pipeline.text import format_table
from pipeline.tracking import runs
from pipeline.tracking.runs import MetricLog, RunHandle
from pipeline.tracking.stores import format_error, redact
from pipeline.training import best_checkpoint, checkpoint, finished_run, schedule
from pipeline.training.checkpoint import CheckpointRef
from pipeline.training.loop import Hooks, TrainJob, TrainResult, train
from pipeline.training.microbatch import resolve_microbatch
from pipeline.training.preflight import PreparedRun, prepare_run
from pipeline.training.run_header import header_rows, resume_command
from pipeline.training.run_lock import hold_run
from pipeline.training.sample_log import merge_sample_lists
from pipeline.training.step import WorkerContext
from pipeline.training.stop import StopRequest

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParentRun:
    """The sweep or study that a run belongs to; by default none."""

    run_id: str = ""
    """MLflow's id of the parent run."""
    resume_command: str = ""
    """The command that resumes the parent; "" is the command that started this process."""
    callbacks: tuple[Any, ...] = ()
    """Ray Train callbacks, called with the metrics of every checkpoint."""


def run(
    recipe: Recipe, *, parent: ParentRun = ParentRun(), row: Row | None = None
) -> dict[str, Any]:
    """Run a recipe to its end.

    Args:
        recipe: the run.
        parent: the sweep or study that it belongs to.
        row: the row of the job that the recipe was made from, for the report.

    Returns:
        The RESULT line: name, steps, metrics by name (AP, AP50, ..., mask_ap, boundary_ap, ..., or
        miou, boundary_f_3px, ...), seconds of each phase, throughput, and the paths of all outputs.

    Raises:
        PipelineError: the run cannot start, or failed.
    """
    stop = StopRequest(parent.resume_command or resume_command())
    run_uri = storage.join(storage.absolute(recipe.storage), recipe.name)
    with stop.catch_sigterm(), hold_run(run_uri, on_loss=stop.lose):
        return _run(recipe, parent=parent, row=row, stop=stop)


def _run(
    recipe: Recipe, *, parent: ParentRun, row: Row | None, stop: StopRequest
) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    with _time_phase(seconds, "check"):
        if recipe.scale.num_workers:
            from pipeline.training.capacity import check_cluster  # noqa: PLC0415  imports ray

            check_cluster(recipe)
            stop.install()
        prepared = resolve_microbatch(prepare_run(recipe))
        recipe = prepared.identity.recipe
        handle = runs.open_run(
            recipe,
            data_fingerprint=prepared.identity.data_fingerprint,
            started_from=prepared.started_from,
            parent_run_id=parent.run_id,
        )
    job = TrainJob(
        recipe=prepared.recipe,
        identity=prepared.identity,
        run_uri=prepared.run_uri,
        resume_command=stop.resume_command,
    )
    _log.info("%s", "\n".join(format_table(header_rows(prepared, handle, job))))
    if text := schedule.describe_short_run(recipe, train_images=prepared.train_images):
        _log.warning("schedule: %s", text)
    with _closing_run(handle):
        with _time_phase(seconds, "train"):
            trained = _train(prepared, job, handle, callbacks=parent.callbacks, stop=stop)
        samples_uri, samples_sha256 = merge_sample_lists(
            prepared.run_uri, steps=trained.step, global_batch=recipe.optim.global_batch
        )
        with _time_phase(seconds, "evaluate"):
            model, final = _load_final_model(prepared, step=trained.step)
            evaluation = _evaluate(model, prepared)
        stop.raise_if_lost()
        with _time_phase(seconds, "register"):
            runs.wait_for_store(handle)
            version = _save_results(model, prepared, handle, evaluation, step=final.step)
            _explain_if_nothing_found(evaluation, prepared)
        with _time_phase(seconds, "report"):
            report = _write_report(
                prepared.run_uri, handle, row.on_data_of(recipe) if row else None
            )
    return {
        "name": recipe.name,
        "steps": trained.step,
        "stopped_early": trained.stopped_early,
        "evaluated_step": final.step,
        **_nan_to_none(_coco_metrics(evaluation) | evaluation.metrics),
        "images": int(evaluation.metrics["images"]),
        "images_per_s": round(trained.images_per_s, 3),
        "evaluated_images_per_s": round(evaluation.metrics["images_per_s"], 3),
        "seconds": round(sum(seconds.values()), 1),
        "seconds_by_phase": {name: round(value, 1) for name, value in seconds.items()},
        "peak_memory_gb": round(trained.peak_memory_bytes / 1e9, 3),
        "checkpoint": final.uri,
        "weights": storage.join(prepared.run_uri, finished_run.WEIGHTS_FILE),
        **evaluation.files,
        "report": report,
        "samples": samples_uri,
        "samples_sha256": samples_sha256,
        "run_id": handle.run_id,
        "tracking": handle.url,
        "model": version.uri if version else "",
        "is_champion": version.is_champion if version else False,
    }


def _train(
    prepared: PreparedRun,
    job: TrainJob,
    handle: RunHandle,
    *,
    callbacks: tuple[Any, ...],
    stop: StopRequest,
) -> TrainResult:
    recipe, resume_from = prepared.recipe, prepared.resume_from
    if recipe.scale.num_workers:
        from pipeline.training.capacity import start_ray  # noqa: PLC0415  imports ray

        # Also for a run that is finished: the evaluation uses the workers too.
        start_ray(recipe)
        stop.install()
    if resume_from is not None and best_checkpoint.is_done(
        prepared.run_uri, recipe, step=resume_from.step
    ):
        _log.info(
            "run %s is finished (step %d of %d): nothing to train, only evaluating. "
            "To start a new run, use another --name.",
            recipe.name,
            resume_from.step,
            recipe.optim.steps,
        )
        is_early = resume_from.step < recipe.optim.steps
        return TrainResult(step=resume_from.step, stopped_early=is_early)
    with stop.training():
        if recipe.scale.num_workers:
            from pipeline.training.ray_workers import train_on_workers  # noqa: PLC0415  imports ray

            result = train_on_workers(job, handle=handle, callbacks=callbacks, stop=stop)
        else:
            result = _train_here(prepared, job, handle, stop=stop)
    if result.error:
        _log_artifact(handle, storage.join(prepared.run_uri, "bad_batch.json"))
        raise TrainingError(result.error)
    stop.raise_if_lost()
    if stop.action:
        kept = ", which has a checkpoint" if result.step else ""
        raise stop.terminated(f" at step {result.step}{kept}")
    return result


def _train_here(
    prepared: PreparedRun, job: TrainJob, handle: RunHandle, *, stop: StopRequest | None = None
) -> TrainResult:
    """Train in this process."""
    recipe = prepared.recipe
    if recipe.scale.threads_per_worker:
        torch.set_num_threads(recipe.scale.threads_per_worker)
    if prepared.resume_from is not None:
        _log.info("resuming from step %d: %s", prepared.resume_from.step, prepared.resume_from.uri)
    metrics = MetricLog(handle.tracking_uri, handle.run_id, handle.spool_uri)
    try:
        return train(
            job,
            worker=WorkerContext(device=torch.device("cuda" if recipe.scale.use_gpu else "cpu")),
            batches=lambda first_step: local_batches(
                prepared.train_uri,
                recipe.data,
                seed=recipe.seed,
                global_batch=recipe.optim.global_batch,
                images_per_microbatch=recipe.scale.microbatch,
                first_step=first_step,
                stop_step=recipe.optim.steps,
                with_masks=reads_masks(recipe.model),
            ),
            hooks=Hooks(
                print_line=lambda line: _log.info("%s", line),
                log=metrics.log,
                before_checkpoint=metrics.persist,
                stop_before=lambda _: stop.action if stop else "",
            ),
            resume_from=prepared.resume_from,
        )
    finally:
        metrics.close()


def _load_final_model(prepared: PreparedRun, *, step: int) -> tuple[nn.Module, CheckpointRef]:
    latest = checkpoint.find_latest(prepared.run_uri)
    if latest is None or latest.step != step:
        raise TrainingError(
            f"{prepared.run_uri} has no whole checkpoint of step {step}, although training ended "
            "there. Run the same command again: it trains from the newest whole checkpoint"
        )
    config = prepared.recipe.checkpoint
    final = best_checkpoint.find_best(prepared.run_uri, config, step=step) or latest
    steps = prepared.recipe.optim.steps
    measured = load_metrics(prepared.run_uri)
    if text := describe_choice(measured, config, steps=steps, best=final.step):
        _log.info("%s", text)
    with SkipRandomInit():
        model = build_model(without_weights(prepared.recipe.model))
    content = checkpoint.load(final)
    model.load_state_dict(content.get("average", content["model"]))
    return model.eval(), final


def _evaluate(model: nn.Module, prepared: PreparedRun) -> Evaluation:
    recipe = prepared.recipe
    evaluation = evaluate_model(
        model,
        prepared.val_uri,
        recipe.data,
        recipe.evaluation,
        out_uri=prepared.run_uri,
        num_workers=recipe.scale.num_workers,
        use_gpu=recipe.scale.use_gpu,
    )
    _log.info("%s", evaluation.text)
    for kind, uri in evaluation.files.items():
        _log.info("evaluate: %s in %s", kind.replace("_", " "), uri)
    return evaluation


def _save_results(
    model: nn.Module,
    prepared: PreparedRun,
    handle: RunHandle,
    evaluation: Evaluation,
    *,
    step: int,
) -> RegisteredVersion | None:
    """Save weights and metrics in the run's folder, log them to MLflow, and register the model."""
    recipe, version = prepared.identity.recipe, None
    record = provenance.EvaluationRecord.from_evaluation(
        evaluation, fingerprint=prepared.val_fingerprint, settings=recipe.evaluation
    )
    training_data = provenance.TrainingData.from_manifest(read_manifest(prepared.train_uri))
    finished_run.save_provenance(prepared.run_uri, evaluation=record, training_data=training_data)
    runs.log_metrics(
        handle, {k: v for k, v in evaluation.metrics.items() if math.isfinite(v)}, step=step
    )
    with storage.temporary_folder() as files:
        weights = files / finished_run.WEIGHTS_FILE
        save_weights(model, weights)
        storage.write_bytes_atomic(
            storage.join(prepared.run_uri, finished_run.WEIGHTS_FILE), weights.read_bytes()
        )
        if recipe.tracking.model_name:
            version = register(
                handle,
                name=recipe.tracking.model_name,
                weights_path=weights,
                recipe=recipe,
                categories=prepared.categories,
                evaluation=record,
                training_data=training_data,
                started_from=prepared.started_from,
            )
        weights.unlink()
        (files / finished_run.METRICS_FILE).write_text(provenance.to_json(record))
        (files / "run_recipe.json").write_text(to_json(recipe))
        artifacts = [storage.join(prepared.run_uri, "samples.csv")]
        # Folders are not uploaded: they are as large as the split.
        artifacts += [uri for uri in evaluation.files.values() if uri.endswith(".json")]
        for uri in artifacts:
            (files / uri.rpartition("/")[2]).write_bytes(checksums.read_file(uri))
        runs.log_artifacts(handle, files, folder="results")
    return version


def _explain_if_nothing_found(evaluation: Evaluation, prepared: PreparedRun) -> None:
    if finds_nothing(evaluation.metrics):
        reasons = schedule.explain_nothing_found(
            prepared.recipe, train_images=prepared.train_images
        )
        _log.warning("the model finds nothing; likely reasons:\n- %s", "\n- ".join(reasons))


def _write_report(run_uri: str, handle: RunHandle, row: Row | None) -> str:
    """Write the report of a run and log it to MLflow; "" if it cannot be written."""
    try:
        if row is not None:
            save_row(run_uri, row)
        # Not at the top: it imports matplotlib, in a second.
        from pipeline.run_report.report import write_report  # noqa: PLC0415

        report = write_report(run_uri, tracking_uri=handle.tracking_uri)
        _log_artifact(handle, report)
    except Exception as error:  # a run that is trained and saved must not fail for its report
        reason = redact(format_error(error))
        _log.warning("report: not written: %s. To try again: bsm report %s", reason, run_uri)
        return ""
    _log.info("report: %s", report)
    return report


def _log_artifact(handle: RunHandle, uri: str) -> None:
    with storage.temporary_folder() as folder:
        path = folder / uri.rsplit("/", 1)[-1]
        path.write_bytes(storage.read_bytes(uri))
        runs.log_artifacts(handle, path)


@contextmanager
def _closing_run(handle: RunHandle) -> Iterator[None]:
    """Close the tracked run with its final status."""
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        runs.finish(handle, status)


@contextmanager
def _time_phase(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started_s = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - started_s


def _coco_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return the mask metrics under COCO's names."""
    segm = evaluation.by_metric.get("segm")
    return dict(segm.by_published_name()) if isinstance(segm, CocoMetrics) else {}


def _nan_to_none(metrics: dict[str, float]) -> dict[str, float | None]:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
