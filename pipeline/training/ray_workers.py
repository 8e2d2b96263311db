"""The loop on Ray Train workers.

Checkpoints are the loop's own, at their final place; Ray Train is told where they are (NO_UPLOAD)
and is never asked for them, so a run may go on with another number of workers or without Ray at
all.
"""

import dataclasses
import logging
import os
import socket
from collections.abc import Iterator
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
from pipeline.errors import PipelineError
from pipeline.recipe import Recipe, reads_masks
from pipeline.tracking.runs import MetricLog, RunHandle
from pipeline.training.checkpoint import Place, find_latest
from pipeline.training.failures import Watch, explained, lost
from pipeline.training.log_relay import open_relay
from pipeline.training.loop import Hooks, Outcome, TrainJob, train
from pipeline.training.node_watch import watched_nodes
from pipeline.training.step import World

_log = logging.getLogger(__name__)

_ray_train: Any = ray.train
"""Type checkers see the old classes in ray.train; at run time they are those of Train V2."""


HELD = "placement_group"
"""Among what is reported at a checkpoint: the id of what the workers hold, in hex digits. Whoever
ends a run from outside must let go of it."""


def train_on_workers(
    job: TrainJob, *, handle: RunHandle, callbacks: tuple[Any, ...] = ()
) -> Outcome:
    """Run the loop on as many Ray Train workers as the recipe says, and start lost ones again.

    Ray must be initialized.

    Args:
        job: the run.
        handle: where its metrics go.
        callbacks: Ray Train's own, told of every checkpoint's metrics beside ours.

    Raises:
        PipelineError: a worker found something that is wrong with the data or the recipe.
        TrainingError: the workers failed more often than the recipe allows, or Ray itself is gone.
    """
    recipe = job.recipe
    file_system, path = storage.resolve(recipe.storage)
    # Ray's own list of checkpoints is of one launch; another one may have pruned what it names.
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
    try:
        with open_relay() as relay, watched_nodes(recipe.scale):
            trainer = _ray_train.torch.TorchTrainer(
                _train_worker,
                train_loop_config={"job": job, "handle": handle, "relay": relay, "chapters": parts},
                scaling_config=_scaling(recipe),
                run_config=_ray_train.RunConfig(
                    name=recipe.name,
                    storage_path=path,
                    storage_filesystem=file_system,
                    failure_config=_ray_train.FailureConfig(max_failures=recipe.scale.max_failures),
                    logging_config=_ray_train.LoggingConfig(log_level="ERROR"),
                    callbacks=[Watch(relay, max_failures=recipe.scale.max_failures), *callbacks],
                ),
                datasets=datasets,
                dataset_config=data_config,
            )
            _log.info("starting %d workers", recipe.scale.num_workers)
            try:
                result = trainer.fit()
            except _ray_train.TrainingFailedError as error:
                raise explained(error, relay, job=job) from None
    except ray.exceptions.RayError as error:
        if isinstance(error, PipelineError):
            raise
        raise lost(error, job=job) from None
    returned: dict[str, Any] = result.return_value
    return Outcome(**returned)


def _scaling(recipe: Recipe) -> Any:  # noqa: ANN401  a ScalingConfig
    scale = recipe.scale
    resources: dict[str, float] = {"CPU": scale.cpus_per_worker}
    if scale.use_gpu:
        resources["GPU"] = 1
    return _ray_train.ScalingConfig(
        num_workers=scale.num_workers, use_gpu=scale.use_gpu, resources_per_worker=resources
    )


def _train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run in each worker process."""
    job: TrainJob = config["job"]
    handle: RunHandle = config["handle"]
    relay = config["relay"]
    context = ray.train.get_context()
    world = World(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        device=ray.train.torch.get_device(),
    )
    relay.started.remote(world.rank, socket.gethostname(), os.getpid())
    if job.recipe.scale.threads_per_worker:
        torch.set_num_threads(job.recipe.scale.threads_per_worker)
    metrics = (
        MetricLog(handle.tracking_uri, handle.run_id, handle.spool_uri) if world.rank == 0 else None
    )
    hooks = Hooks(
        say=relay.say.remote,
        log=metrics.log if metrics else lambda _step, _metrics: None,
        saving=metrics.keep if metrics else lambda: None,
        saved=_report,
    )
    place = _agreed(find_latest(job.run_uri) if world.rank == 0 else None, world=world)
    if world.rank == 0:
        where = f"going on from step {place.step}: {place.uri}" if place else "from the start"
        hooks.say(f"{world.size} workers are ready, {where}")
    try:
        outcome = train(
            job,
            world=world,
            batches=lambda first: _batches(job, config["chapters"], first, world=world),
            hooks=hooks,
            place=place,
        )
    finally:
        if metrics:
            metrics.close()
    return dataclasses.asdict(outcome)


def _batches(
    job: TrainJob, parts: tuple[Chapter, ...], first_step: int, *, world: World
) -> Iterator[StepBatch]:
    recipe = job.recipe
    for chapter in parts:
        if chapter.stop_step > first_step:
            yield from worker_batches(
                chapter,
                recipe.data,
                rank=world.rank,
                world_size=world.size,
                seed=recipe.seed,
                global_batch=recipe.optim.global_batch,
                images_per_microbatch=recipe.scale.images_per_microbatch,
                first_step=first_step,
                with_masks=reads_masks(recipe.model),
            )


def _agreed(place: Place | None, *, world: World) -> Place | None:
    """Let all workers go on from the checkpoint that rank 0 found."""
    if world.size == 1:
        return place
    found: list[Place | None] = [place]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _report(place: Place | None, metrics: dict[str, float]) -> None:
    checkpoint = None
    if place is not None:
        file_system, path = storage.resolve(place.uri)
        checkpoint = ray.train.Checkpoint(path, filesystem=file_system)
    held = ray.util.get_current_placement_group()
    _ray_train.report(
        metrics | ({HELD: held.id.hex()} if held else {}),
        checkpoint=checkpoint,
        checkpoint_upload_mode=_ray_train.CheckpointUploadMode.NO_UPLOAD,
    )
