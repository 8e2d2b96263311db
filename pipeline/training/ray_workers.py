"""Run the training loop on Ray Train workers.

The loop writes its checkpoints itself, to their final place. Ray Train only gets their path
(NO_UPLOAD) and is never asked for them, so a run may resume with another number of workers, or
without Ray.
"""

import dataclasses
import functools
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist

from pipeline import storage
from pipeline.data.plan import Chapter, chapters
from pipeline.data.stream import StepBatch, ray_chapters, worker_batches
from pipeline.errors import PipelineError, TrainingError
from pipeline.recipe import Recipe, reads_masks
from pipeline.text import format_count
from pipeline.tracking.runs import MetricLog, RunHandle
from pipeline.training.capacity import PLACEMENT_GROUP_KEY
from pipeline.training.checkpoint import CheckpointRef, find_latest
from pipeline.training.failures import FailureCallback, to_ray_lost_error, to_training_error
from pipeline.training.log_relay import StopAgreement, open_relay
from pipeline.training.loop import Hooks, TrainJob, TrainResult, train
from pipeline.training.node_watch import watch_nodes
from pipeline.training.ray_loss import RayLoss, RayLostError, interrupt_if_ray_is_lost
from pipeline.training.step import WorkerContext
from pipeline.training.stop import StopRequest

_log = logging.getLogger(__name__)

_RAY_LOST = (RayLostError, ray.exceptions.RayError)

_ray_train: Any = ray.train
"""Type checkers see the old classes of ray.train; at run time they are those of Train V2."""


def train_on_workers(
    job: TrainJob,
    *,
    handle: RunHandle,
    callbacks: tuple[Any, ...] = (),
    stop: StopRequest | None = None,
) -> TrainResult:
    """Train on the recipe's number of Ray Train workers, and restart lost ones.

    Ray must be initialized.

    Args:
        job: the run.
        handle: the tracked run that receives the metrics.
        callbacks: further Ray Train callbacks; they see the metrics of every checkpoint.
        stop: tells the workers to stop.

    Raises:
        PipelineError: a worker found an error in the data or the recipe.
        TrainingError: the workers failed more often than the recipe allows, or Ray itself is gone.
    """
    recipe = job.recipe
    file_system, path = storage.resolve(recipe.storage)
    # Ray's list of checkpoints belongs to one launch; a later one may have pruned some of them.
    storage.remove(storage.join(job.run_uri, "checkpoint_manager_snapshot.json"))
    parts = chapters(
        steps=recipe.optim.steps,
        chapter_steps=recipe.checkpoint.every_steps,
        global_batch=recipe.optim.global_batch,
    )
    datasets, data_config = ray_chapters(
        storage.join(recipe.data.root, recipe.data.train_split),
        recipe.data,
        seed=recipe.seed,
        global_batch=recipe.optim.global_batch,
        chapters=parts,
        with_masks=reads_masks(recipe.model),
    )
    max_failures = recipe.scale.max_failures
    stop = stop or StopRequest()
    loss = RayLoss(stop, give_up=functools.partial(_give_up, job))
    try:
        with (
            interrupt_if_ray_is_lost(loss),
            open_relay(stop) as relay,
            watch_nodes(recipe.scale),
        ):
            trainer = _ray_train.torch.TorchTrainer(
                # Not in train_loop_config: Ray's controller unpickles that, and imports torch.
                functools.partial(_train_worker, job=job, handle=handle, relay=relay, parts=parts),
                scaling_config=_scaling_config(recipe),
                run_config=_ray_train.RunConfig(
                    name=recipe.name,
                    storage_path=path,
                    storage_filesystem=file_system,
                    failure_config=_ray_train.FailureConfig(max_failures=max_failures),
                    logging_config=_ray_train.LoggingConfig(log_level="ERROR"),
                    callbacks=[FailureCallback(relay, max_failures=max_failures), *callbacks],
                ),
                datasets=datasets,
                dataset_config=data_config,
            )
            _log.info("starting %s", format_count(recipe.scale.num_workers, "worker"))
            try:
                result = trainer.fit()
            except _ray_train.TrainingFailedError as error:
                raise to_training_error(error, relay, job=job) from None
    except (Exception, KeyboardInterrupt) as error:
        lost = loss.error or error
        if isinstance(lost, PipelineError) or not isinstance(lost, _RAY_LOST):
            raise
        raise to_ray_lost_error(lost, job=job) from None
    returned: dict[str, Any] = result.return_value
    return TrainResult(**returned)


def _give_up(job: TrainJob, error: Exception) -> None:
    """End this process: its main thread waits in Ray's code, which would end it silently."""
    _log.error("%s", to_ray_lost_error(error, job=job))
    sys.stdout.flush()
    os._exit(TrainingError.exit_code)


def _scaling_config(recipe: Recipe) -> Any:  # noqa: ANN401  a ScalingConfig
    scale = recipe.scale
    resources: dict[str, float] = {"CPU": scale.cpus_per_worker}
    if scale.use_gpu:
        resources["GPU"] = 1
    return _ray_train.ScalingConfig(
        num_workers=scale.num_workers, use_gpu=scale.use_gpu, resources_per_worker=resources
    )


def _train_worker(
    *,
    job: TrainJob,
    handle: RunHandle,
    relay: Any,  # noqa: ANN401  an actor's handle
    parts: tuple[Chapter, ...],
) -> dict[str, Any]:
    """Train in a worker process."""
    context = ray.train.get_context()
    worker = WorkerContext(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )
    relay.set_location.remote(worker.rank, socket.gethostname(), os.getpid())
    if job.recipe.scale.threads_per_worker:
        torch.set_num_threads(job.recipe.scale.threads_per_worker)
    agreement = StopAgreement(relay, worker=worker)
    hooks = Hooks(after_checkpoint=_report_checkpoint, stop_before=agreement.stop_before)
    metrics = None
    if worker.rank == 0:
        metrics = MetricLog(handle.tracking_uri, handle.run_id, handle.spool_uri)
        hooks = dataclasses.replace(
            hooks,
            print_line=relay.print_line.remote,
            report_worker=relay.report_worker.remote,
            log=metrics.log,
            before_checkpoint=metrics.persist,
        )
    resume_from = _find_checkpoint(job.run_uri, worker=worker, print_line=hooks.print_line)
    workers = format_count(worker.world_size, "worker")
    if resume_from:
        start = f"resuming from step {resume_from.step}: {resume_from.uri}"
    else:
        start = "starting at step 0"
    hooks.print_line(f"{workers} ready, {start}")
    try:
        result = train(
            job,
            worker=worker,
            batches=lambda first: _read_batches(job, parts, first, worker=worker),
            hooks=hooks,
            resume_from=resume_from,
        )
    finally:
        if metrics:
            metrics.close()
    return dataclasses.asdict(result)


def _read_batches(
    job: TrainJob, parts: tuple[Chapter, ...], first_step: int, *, worker: WorkerContext
) -> Iterator[StepBatch]:
    recipe = job.recipe
    for chapter in parts:
        if chapter.stop_step > first_step:
            yield from worker_batches(
                chapter,
                recipe.data,
                rank=worker.rank,
                world_size=worker.world_size,
                seed=recipe.seed,
                global_batch=recipe.optim.global_batch,
                images_per_microbatch=recipe.scale.microbatch,
                first_step=first_step,
                with_masks=reads_masks(recipe.model),
            )


def _find_checkpoint(
    run_uri: str, *, worker: WorkerContext, print_line: Callable[[str], None]
) -> CheckpointRef | None:
    """Find the latest checkpoint on rank 0, and broadcast it to all workers."""
    found = [find_latest(run_uri, print_line=print_line) if worker.rank == 0 else None]
    if worker.world_size > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]


def _report_checkpoint(saved: CheckpointRef | None, metrics: dict[str, float]) -> None:
    checkpoint = None
    if saved is not None:
        file_system, path = storage.resolve(saved.uri)
        checkpoint = ray.train.Checkpoint(path, filesystem=file_system)
    group = ray.util.get_current_placement_group()
    _ray_train.report(
        metrics | ({PLACEMENT_GROUP_KEY: group.id.hex()} if group else {}),
        checkpoint=checkpoint,
        checkpoint_upload_mode=_ray_train.CheckpointUploadMode.NO_UPLOAD,
    )
