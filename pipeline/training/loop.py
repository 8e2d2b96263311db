"""The training loop of one worker, from the last checkpoint to the last step, without Ray.

The same function trains in this process (`num_workers=0`), on each Ray Train worker, and in tests
with a small model: batches, metrics, progress lines and checkpoint reports are passed in.

Random numbers outside the model's own sampling come from (seed, step, rank), so the step number is
the only random state that a resume needs, on any number of workers.
"""

import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bsm.activation_checkpointing import checkpoint_activations
from bsm.build import build_model
from bsm.configs.models import ModelConfig, without_weights
from pipeline.data.stream import StepBatch
from pipeline.errors import TrainingError
from pipeline.evaluation import checkpoint_metrics
from pipeline.recipe import Recipe
from pipeline.training import best_checkpoint, checkpoint, evaluate_checkpoint, progress
from pipeline.training.bad_step import save_bad_step
from pipeline.training.checkpoint import CheckpointRef, Identity
from pipeline.training.checkpoint_writer import CheckpointWriter
from pipeline.training.optim import FiniteOptimizer, build_optimizer, learning_rate
from pipeline.training.sample_log import SampleLog, delete_from_step
from pipeline.training.start_weights import with_local_weights
from pipeline.training.step import (
    BadStep,
    StepMetrics,
    Summary,
    WorkerContext,
    derive_seed,
    train_step,
)
from pipeline.training.stop import Stop
from pipeline.training.straggler import StragglerReport, find_slowest
from pipeline.training.validation_loss import compute_validation_losses
from pipeline.training.weight_average import WeightAverage


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJob:
    """Everything that a worker must know, as plain values that can be sent to any machine."""

    recipe: Recipe
    """With absolute paths."""
    identity: Identity
    run_uri: str
    resume_command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """Callbacks of the loop; by default they do nothing."""

    print_line: Callable[[str], None] = lambda _: None
    """Shows a line to the user; called on rank 0."""
    report_worker: Callable[[int, str], None] = lambda _rank, _text: None
    """Shows a line about a worker to the user, after its rank and place; called on rank 0."""
    log: Callable[[int, dict[str, float]], None] = lambda _step, _metrics: None
    """Logs the metrics of a step; called on rank 0, must not block."""
    before_checkpoint: Callable[[], None] = lambda: None
    """Called on rank 0 before a checkpoint is written; must make the logged metrics durable."""
    after_checkpoint: Callable[[CheckpointRef | None, dict[str, float]], None] = (
        lambda _checkpoint, _metrics: None
    )
    """Called on every worker when a checkpoint is being written, with the checkpoint on rank 0, and
    with the last metrics, the step, and the evaluation if the recipe asks for one."""
    stop_before: Callable[[int], Stop] = lambda _: ""
    """Called on every worker before each step; must return the same on all of them."""
    build: Callable[[ModelConfig], nn.Module] = build_model


@dataclass(kw_only=True, slots=True)
class TrainResult:
    """The result of one worker's training."""

    step: int
    """Steps done, over all attempts."""
    stopped_early: bool = False
    """Whether training ended before the last step, as checkpoint.patience says."""
    steps_here: int = 0
    """Steps done in this attempt."""
    train_s: float = 0.0
    images_per_s: float = 0.0
    """Over all workers, without the first log window, which includes the warm-up."""
    peak_memory_bytes: int = 0
    parameters: int = 0
    last_metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""
    """Message for the user if a step was not finite."""


def train(
    job: TrainJob,
    *,
    worker: WorkerContext,
    batches: Callable[[int], Iterable[StepBatch]],
    hooks: Hooks,
    resume_from: CheckpointRef | None,
) -> TrainResult:
    """Train to the last step of the recipe.

    Args:
        job: the run.
        worker: the calling worker.
        batches: returns this worker's steps, starting at a given step.
        hooks: callbacks.
        resume_from: the checkpoint to resume from, the same on every worker.

    Raises:
        TrainingError: the stream ended early or skipped a step.
    """
    recipe = job.recipe
    torch.manual_seed(recipe.seed)
    model = _build(recipe, worker, hooks, resume_from=resume_from)
    optimizer = build_optimizer(model, optim=recipe.optim)
    first_step = 0
    average = None
    if recipe.optim.ema_decay:
        average = WeightAverage(model, decay=recipe.optim.ema_decay)
    if resume_from is not None:
        content = checkpoint.load(resume_from)
        checkpoint.restore(content, model=model, optimizer=optimizer)
        if average is not None:
            average.load_state_dict(content["average"])
        first_step = resume_from.step
    if worker.rank == 0:
        delete_from_step(job.run_uri, step=first_step)
        checkpoint_metrics.delete_after(job.run_uri, step=first_step)
    loop = _TrainLoop(job, worker, hooks, model, optimizer, average)
    stream = iter(batches(first_step))
    try:
        return loop.run(stream, first_step=first_step)
    except torch.OutOfMemoryError as error:
        text = progress.describe_out_of_memory(error, recipe, position=loop.describe_position())
        raise TrainingError(text) from error
    except Exception as error:
        error.add_note(loop.describe_position())
        raise
    finally:
        loop.close()
        if isinstance(stream, Generator):
            stream.close()


def _build(
    recipe: Recipe, worker: WorkerContext, hooks: Hooks, *, resume_from: CheckpointRef | None
) -> nn.Module:
    with with_local_weights(config_for_resume(recipe.model, resume_from=resume_from)) as config:
        model = hooks.build(config).to(worker.device)
    if recipe.scale.activation_checkpointing:
        checkpoint_activations(model)
    return model.train()


def config_for_resume(config: ModelConfig, *, resume_from: CheckpointRef | None) -> ModelConfig:
    """Remove the pretrained weights from a config if a checkpoint will overwrite them."""
    return config if resume_from is None else without_weights(config)


def wrap_for_training(
    model: nn.Module, *, worker: WorkerContext, compiles: bool = False
) -> nn.Module:
    """Wrap a model so that it is compiled, and its gradients averaged over several workers.

    The model itself stays as it is, for checkpoints and evaluation. In DDP, torch.compile splits
    its graph where a bucket of gradients is full, to send it during the backward pass.
    """
    if compiles:
        model = cast(nn.Module, torch.compile(model))
    if worker.world_size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[worker.device] if worker.device.type == "cuda" else None,
        # Only the running statistics of plain batch norm differ between workers.
        broadcast_buffers=any(isinstance(module, nn.BatchNorm2d) for module in model.modules()),
        gradient_as_bucket_view=True,
    )


class _TrainLoop:
    """The state of one attempt on one worker."""

    def __init__(
        self,
        job: TrainJob,
        worker: WorkerContext,
        hooks: Hooks,
        model: nn.Module,
        optimizer: FiniteOptimizer,
        average: WeightAverage | None,
    ) -> None:
        self.job, self.worker, self.hooks = job, worker, hooks
        self.recipe = job.recipe
        self.model, self.optimizer, self.average = model, optimizer, average
        self.ddp_model = wrap_for_training(model, worker=worker, compiles=self.recipe.optim.compile)
        self.samples = SampleLog(worker)
        self.writer = CheckpointWriter()
        self.stragglers = StragglerReport()
        self.started_s = time.perf_counter()
        self.steady_s, self.steady_steps = 0.0, 0
        self.item: StepBatch | None = None
        self.result = TrainResult(step=0, parameters=sum(p.numel() for p in model.parameters()))

    def run(self, batches: Iterator[StepBatch], *, first_step: int) -> TrainResult:
        steps = self.recipe.optim.steps
        self.result.step = first_step
        metrics = StepMetrics(self.worker)
        for step in range(first_step, steps):
            if self._should_stop_early(step, is_first=step == first_step):
                return self._finish()
            if stop := self.hooks.stop_before(step):
                return self._leave(stop, metrics)
            item = _check_step(metrics.next_batch(batches), step=step, steps=steps)
            self._train_step(item, metrics)
            is_first, done = step == first_step, step + 1
            if is_first or self._should_log(done) or metrics.has_bad_step():
                summary = metrics.reduce()
                if isinstance(summary, BadStep):
                    return self._stop(summary)
                self._log_window(summary, item, is_first=is_first)
            if self._should_checkpoint(done):
                self._save_checkpoint(item)
                # A checkpoint's time is not training time.
                metrics.restart_clock()
        # Exhaust the stream: its threads wait for their last reader.
        for _ in batches:
            raise TrainingError(f"the stream continued after the last step {steps}")
        return self._finish()

    def describe_position(self) -> str:
        """Name the images that this worker processed last."""
        if self.item is None:
            return f"rank {self.worker.rank} had no batch yet"
        ids = [image for batch in self.item.microbatches for image in batch.image_id.tolist()]
        return f"rank {self.worker.rank}, step {self.item.step}, images {ids}"

    def _train_step(self, item: StepBatch, metrics: StepMetrics) -> None:
        self.item = item
        torch.manual_seed(derive_seed(self.recipe.seed, item.step, self.worker.rank))
        output = train_step(
            self.ddp_model,
            self.optimizer,
            microbatches=item.microbatches,
            step=item.step,
            optim=self.recipe.optim,
            device=self.worker.device,
            clock=metrics.clock,
        )
        if self.average is not None:
            self.average.update(step=item.step)
        lr = learning_rate(self.recipe.optim, step=item.step)
        metrics.add(output, step=item.step, epoch=item.epoch, lr=lr, microbatches=item.microbatches)
        self.samples.add(item.microbatches, step=item.step, epoch=item.epoch)
        self.result.step = item.step + 1
        self.result.steps_here += 1

    def _should_log(self, done: int) -> bool:
        return done % self.recipe.tracking.log_every == 0 or self._should_checkpoint(done)

    def _should_checkpoint(self, done: int) -> bool:
        return done % self.recipe.checkpoint.every_steps == 0 or done == self.recipe.optim.steps

    def _log_window(self, summary: Summary, item: StepBatch, *, is_first: bool) -> None:
        """Log the steps since the last log line."""
        if not is_first:
            self.steady_s += summary.seconds
            self.steady_steps += summary.steps
        metrics = progress.build_metrics(
            summary,
            epoch=item.epoch,
            lr=learning_rate(self.recipe.optim, step=item.step),
            global_batch=self.recipe.optim.global_batch,
            memory_bytes=progress.peak_memory_bytes(self.worker.device),
        )
        slowest = find_slowest(summary.own_s, seconds=summary.seconds)
        if slowest is not None:
            metrics |= {"slowest_worker": float(slowest.rank), "worker_spread": slowest.ratio}
        self.result.last_metrics = metrics
        if self.worker.rank == 0:
            done, steps = item.step + 1, self.recipe.optim.steps
            self.hooks.log(done, metrics)
            self.hooks.print_line(progress.format_progress(metrics, done=done, steps=steps))
            if slow := self.stragglers.add(summary.own_s, seconds=summary.seconds):
                self.hooks.report_worker(*slow)

    def _save_checkpoint(self, item: StepBatch, *, evaluates: bool = True) -> None:
        """Save the sample list first, so that it covers every step of the checkpoint."""
        self.samples.write(self.job.run_uri)
        evaluation = self._evaluate(item) if evaluates else {}
        saved = None
        if self.worker.rank == 0:
            self.hooks.before_checkpoint()
            saved = self.writer.save(
                self.job.run_uri,
                model=self.model,
                optimizer=self.optimizer,
                average=self.average,
                step=item.step + 1,
                epoch=item.epoch,
                identity=self.job.identity,
                then=functools.partial(
                    best_checkpoint.prune,
                    self.job.run_uri,
                    self.recipe.checkpoint,
                    step=item.step + 1,
                ),
            )
        metrics = self.result.last_metrics | evaluation | {"step": float(item.step + 1)}
        self.hooks.after_checkpoint(saved, metrics)

    def _leave(self, stop: Stop, metrics: StepMetrics) -> TrainResult:
        """Stop before the last step, with a checkpoint of the steps since the last one."""
        if self.worker.rank == 0 and stop == "save":
            self.hooks.print_line(
                f"SIGTERM: stopping at step {self.result.step}, with a checkpoint"
            )
        if stop == "save" and self.item and not self._should_checkpoint(self.result.step):
            if metrics.has_steps():
                summary = metrics.reduce()
                if isinstance(summary, BadStep):
                    return self._stop(summary)
                self._log_window(summary, self.item, is_first=False)
            # The process may have only seconds left.
            self._save_checkpoint(self.item, evaluates=False)
        return self._finish()

    def _evaluate(self, item: StepBatch) -> dict[str, float]:
        """Evaluate the model if the recipe asks for it, before the checkpoint is written.

        After a crash in between, the resume evaluates again. The last step is evaluated by the run,
        except that it may be the best one.
        """
        recipe, done = self.recipe, item.step + 1
        is_last = done == recipe.optim.steps
        evaluates = recipe.evaluates_checkpoints and not is_last
        metrics: dict[str, float] = {}
        with self._averaged_weights():
            if evaluates or recipe.checkpoint.best_metric:
                metrics |= evaluate_checkpoint.evaluate_on_workers(
                    self.model, recipe, worker=self.worker
                )
            if recipe.computes_validation_losses:
                metrics |= compute_validation_losses(self.model, recipe, worker=self.worker)
        if self.worker.rank == 0 and metrics:
            self._log_evaluation(metrics, done=done)
        return metrics

    def _log_evaluation(self, metrics: dict[str, float], *, done: int) -> None:
        checkpoint_metrics.save_metrics(self.job.run_uri, metrics, step=done)
        self.hooks.log(done, metrics)
        best_step = None
        if metric := self.recipe.checkpoint.best_metric:
            found = checkpoint_metrics.load_metrics(self.job.run_uri)
            best_step = checkpoint_metrics.choose_best(found, metric)
        self.hooks.print_line(progress.format_evaluation(metrics, done=done, best_step=best_step))

    def _should_stop_early(self, step: int, *, is_first: bool) -> bool:
        """Ask rank 0 after each evaluation, so that all workers stop before the same step."""
        if not self.recipe.checkpoint.patience:
            return False
        if not is_first and not self._should_checkpoint(step):
            return False
        stalled = [False]
        if self.worker.rank == 0:
            stalled[0] = best_checkpoint.has_stopped_early(self.job.run_uri, self.recipe, step=step)
        if self.worker.world_size > 1:
            dist.broadcast_object_list(stalled, src=0)
        self.result.stopped_early = stalled[0]
        return stalled[0]

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Give the model its averaged weights for an evaluation, if the recipe averages them."""
        if self.average is None:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

    def close(self) -> None:
        """End the writing of checkpoints; after an error, only say that it failed too."""
        if (error := self.writer.close()) is not None:
            self.hooks.print_line(f"the last checkpoint could not be written: {error}")

    def _stop(self, bad: BadStep) -> TrainResult:
        self.writer.wait()
        if self.worker.rank == 0:
            save_bad_step(self.job.run_uri, bad, self.model, steps_done=self.result.step)
        latest = checkpoint.find_latest(self.job.run_uri)
        self.result.error = progress.describe_bad_step(
            bad,
            run_uri=self.job.run_uri,
            resume=self.job.resume_command,
            checkpoint_step=latest.step if latest else 0,
        )
        return self._finish()

    def _finish(self) -> TrainResult:
        self.writer.wait()
        images = self.steady_steps * self.recipe.optim.global_batch
        self.result.train_s = time.perf_counter() - self.started_s
        self.result.images_per_s = images / self.steady_s if self.steady_s else 0.0
        self.result.peak_memory_bytes = progress.peak_memory_bytes(self.worker.device)
        return self.result


def _check_step(item: StepBatch | None, *, step: int, steps: int) -> StepBatch:
    if item is None:
        raise TrainingError(
            f"the stream ended before step {step} of {steps}: the shards hold fewer rows than "
            "dataset.json says. Ingest the split again."
        )
    if item.step != step:
        raise TrainingError(
            f"the stream gave step {item.step} instead of step {step}. To resume from the last "
            "checkpoint, run the same command again."
        )
    return item
