"""What one worker does, from the last checkpoint to the last step. Knows nothing of Ray.

The same function trains in this process (`num_workers=0`), on each Ray Train worker, and in tests
with a small model: batches, metrics, progress lines and checkpoint reports are passed in.

A step's random draws outside the model's own sampling come from (seed, step, rank), so the step
number is all the random state that a resume needs on any number of workers.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bsm.build import build_model
from bsm.configs.models import without_weights
from pipeline import storage
from pipeline.data.stream import StepBatch
from pipeline.errors import TrainingError
from pipeline.recipe import AnyModel, Recipe
from pipeline.training import checkpoint, evaluate_checkpoint, progress
from pipeline.training.checkpoint import Identity, Place
from pipeline.training.optim import FiniteOptimizer, build_optimizer, learning_rate
from pipeline.training.sample_log import SampleLog, forget_from
from pipeline.training.start_weights import at_hand
from pipeline.training.step import BadStep, Summary, Window, World, train_step


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJob:
    """All that a worker must know; plain values, so it can be sent to any machine."""

    recipe: Recipe
    """With paths that hold in every working directory."""
    identity: Identity
    run_uri: str
    resume_command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """Where a worker's news go. The defaults drop them."""

    say: Callable[[str], None] = lambda _: None
    """A line for the user; called on rank 0."""
    log: Callable[[int, dict[str, float]], None] = lambda _step, _metrics: None
    """Metrics of a step; called on rank 0, must not block."""
    saving: Callable[[], None] = lambda: None
    """Before a checkpoint is written, on rank 0: what was logged must outlive this process."""
    saved: Callable[[Place | None, dict[str, float]], None] = lambda _place, _metrics: None
    """After a checkpoint, on every worker; rank 0 passes its place, and the metrics have its step
    and, where the recipe wants it, what was measured."""
    build: Callable[[AnyModel], nn.Module] = build_model


@dataclass(kw_only=True, slots=True)
class Outcome:
    """How a worker's training ended."""

    step: int
    """Steps done, over all attempts."""
    steps_here: int = 0
    """Of these, steps that this attempt did."""
    train_s: float = 0.0
    images_per_s: float = 0.0
    """Over all workers, first step left out: it pays for warming up."""
    peak_memory_bytes: int = 0
    parameters: int = 0
    last_metrics: dict[str, float] = field(default_factory=dict)
    bad: str = ""
    """What to tell the user when a step was not finite."""


@dataclass(slots=True)
class _Clock:
    """Throughput over the whole attempt."""

    started_s: float = field(default_factory=time.perf_counter)
    steady_s: float = 0.0
    steady_steps: int = 0

    def count(self, summary: Summary, *, is_first: bool) -> None:
        if not is_first:
            self.steady_s += summary.seconds
            self.steady_steps += summary.steps


def train(
    job: TrainJob,
    *,
    world: World,
    batches: Callable[[int], Iterable[StepBatch]],
    hooks: Hooks,
    place: Place | None,
) -> Outcome:
    """Train to the last step of the recipe.

    Args:
        job: the run.
        world: this worker's place.
        batches: gives this worker's steps from a first step on.
        hooks: where news go.
        place: the checkpoint to go on from; the same on every worker.

    Raises:
        TrainingError: the stream ended early or skipped a step.
    """
    recipe = job.recipe
    torch.manual_seed(recipe.seed)
    with at_hand(start_of(recipe.model, place=place)) as start:
        model = hooks.build(start).to(world.device)
    model.train()
    optimizer = build_optimizer(model, optim=recipe.optim)
    first_step = 0
    if place is not None:
        checkpoint.restore(checkpoint.load(place), model=model, optimizer=optimizer)
        first_step = place.step
    if world.rank == 0:
        forget_from(job.run_uri, step=first_step)
    worker = _Worker(job, world, hooks, model, optimizer)
    stream = iter(batches(first_step))
    try:
        return worker.run(stream, first_step=first_step)
    except Exception as error:
        # The images are on the line that a user reads first.
        error.add_note(worker.last_seen())
        raise
    finally:
        if isinstance(stream, Generator):
            stream.close()


def start_of(config: AnyModel, *, place: Place | None) -> AnyModel:
    """Leave out pretrained weights that a checkpoint will overwrite: they may be far away."""
    return config if place is None else without_weights(config)


def share_model(model: nn.Module, *, world: World) -> nn.Module:
    """Wrap a model so that its gradients are averaged over the workers."""
    if world.size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        # Only running statistics of plain batch norm differ between workers.
        broadcast_buffers=any(isinstance(module, nn.BatchNorm2d) for module in model.modules()),
        gradient_as_bucket_view=True,
    )


class _Worker:
    """The state of one attempt on one worker."""

    def __init__(
        self,
        job: TrainJob,
        world: World,
        hooks: Hooks,
        model: nn.Module,
        optimizer: FiniteOptimizer,
    ) -> None:
        self.job, self.world, self.hooks = job, world, hooks
        self.recipe = job.recipe
        self.model, self.optimizer = model, optimizer
        self.shared = share_model(model, world=world)
        self.samples = SampleLog(world)
        self.clock = _Clock()
        self.item: StepBatch | None = None
        self.outcome = Outcome(step=0, parameters=sum(p.numel() for p in model.parameters()))

    def run(self, batches: Iterator[StepBatch], *, first_step: int) -> Outcome:
        optim = self.recipe.optim
        self.outcome.step = first_step
        window = Window(self.world)
        for step in range(first_step, optim.steps):
            item = _expect(window.wait_for(batches), step=step, steps=optim.steps)
            self._train_one(item, window)
            if self._is_border(step + 1, first_step=first_step) or window.looks_bad():
                closed = window.close()
                if isinstance(closed, BadStep):
                    return self._stop(closed)
                self._look(closed, item, is_first=step == first_step)
            if self._saves(step + 1):
                self._save(item)
                # The time of a checkpoint is no training time.
                window.restart_clock()
        # Let the stream end by itself: its threads wait for their last reader.
        for _ in batches:
            raise TrainingError(f"the stream went on after the last step {optim.steps}")
        return self._finish()

    def last_seen(self) -> str:
        """Say which images this worker worked on last."""
        if self.item is None:
            return f"rank {self.world.rank} had no batch yet"
        ids = [image for batch in self.item.passes for image in batch.image_id.tolist()]
        return f"rank {self.world.rank}, step {self.item.step}, images {ids}"

    def _train_one(self, item: StepBatch, window: Window) -> None:
        self.item = item
        torch.manual_seed(_draws_seed(self.recipe.seed, item.step, self.world.rank))
        measured = train_step(
            self.shared,
            self.optimizer,
            passes=item.passes,
            step=item.step,
            optim=self.recipe.optim,
            device=self.world.device,
        )
        lr = learning_rate(self.recipe.optim, step=item.step)
        window.add(measured, step=item.step, epoch=item.epoch, lr=lr, passes=item.passes)
        self.samples.add(item.passes, step=item.step, epoch=item.epoch)
        self.outcome.step = item.step + 1
        self.outcome.steps_here += 1

    def _is_border(self, done: int, *, first_step: int) -> bool:
        """Whether the numbers are read after so many steps: the first one too, to show life."""
        return (
            done % self.recipe.tracking.log_every == 0
            or done == first_step + 1
            or self._saves(done)
        )

    def _saves(self, done: int) -> bool:
        return done % self.recipe.checkpoint.every_steps == 0 or done == self.recipe.optim.steps

    def _look(self, summary: Summary, item: StepBatch, *, is_first: bool) -> None:
        self.clock.count(summary, is_first=is_first)
        metrics = progress.metrics_of(
            summary,
            epoch=item.epoch,
            lr=learning_rate(self.recipe.optim, step=item.step),
            global_batch=self.recipe.optim.global_batch,
            memory_bytes=progress.peak_memory_bytes(self.world.device),
        )
        self.outcome.last_metrics = metrics
        if self.world.rank == 0:
            done = item.step + 1
            self.hooks.log(done, metrics)
            self.hooks.say(progress.line(metrics, done=done, steps=self.recipe.optim.steps))

    def _save(self, item: StepBatch) -> None:
        """Write the samples, then the checkpoint: what a checkpoint trained is always listed."""
        self.samples.write(self.job.run_uri)
        measured = self._measured(item)
        place = None
        if self.world.rank == 0:
            self.hooks.saving()
            place = checkpoint.save(
                self.job.run_uri,
                model=self.model,
                optimizer=self.optimizer,
                step=item.step + 1,
                epoch=item.epoch,
                identity=self.job.identity,
            )
        done = {"step": float(item.step + 1)}
        self.hooks.saved(place, self.outcome.last_metrics | measured | done)
        if self.world.rank == 0:
            checkpoint.prune(self.job.run_uri, keep=self.recipe.checkpoint.keep)

    def _measured(self, item: StepBatch) -> dict[str, float]:
        """Measure the model, before its checkpoint says that this is done."""
        done = item.step + 1
        if not self.recipe.evaluation.every_checkpoint or done == self.recipe.optim.steps:
            return {}
        metrics = evaluate_checkpoint.measure(self.model, self.recipe, world=self.world)
        if self.world.rank == 0:
            evaluate_checkpoint.keep(self.job.run_uri, metrics, step=done)
            self.hooks.log(done, metrics)
            self.hooks.say(progress.measured_line(metrics, done=done))
        return metrics

    def _stop(self, bad: BadStep) -> Outcome:
        if self.world.rank == 0:
            record = {**dataclasses.asdict(bad), "image_ids": bad.image_ids}
            storage.write_bytes_atomic(
                storage.join(self.job.run_uri, "bad_batch.json"), _json(record)
            )
        latest = checkpoint.find_latest(self.job.run_uri)
        self.outcome.bad = progress.bad_step_text(
            bad,
            run_uri=self.job.run_uri,
            resume=self.job.resume_command,
            checkpoint_step=latest.step if latest else 0,
        )
        return self._finish()

    def _finish(self) -> Outcome:
        clock, outcome = self.clock, self.outcome
        outcome.train_s = time.perf_counter() - clock.started_s
        images = clock.steady_steps * self.recipe.optim.global_batch
        outcome.images_per_s = images / clock.steady_s if clock.steady_s else 0.0
        outcome.peak_memory_bytes = progress.peak_memory_bytes(self.world.device)
        return outcome


def _expect(item: StepBatch | None, *, step: int, steps: int) -> StepBatch:
    if item is None:
        raise TrainingError(
            f"the stream ended before step {step} of {steps}: the shards hold fewer rows than "
            "dataset.json says. Ingest the split again."
        )
    if item.step != step:
        raise TrainingError(
            f"the stream gave step {item.step} where step {step} was due. Start the same command "
            "again to go on from the last checkpoint."
        )
    return item


def _draws_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _json(record: dict[str, Any]) -> bytes:
    """JSON has no NaN: numbers that are not finite are written as text."""

    def plain(value: Any) -> Any:  # noqa: ANN401  any JSON value
        match value:
            case dict():
                return {key: plain(each) for key, each in value.items()}
            case list() | tuple():
                return [plain(each) for each in value]
            case float() if not -float("inf") < value < float("inf"):
                return str(value)
        return value

    return json.dumps(plain(record), indent=1).encode()
