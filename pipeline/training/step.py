"""One optimizer step: several microbatches, one update, and no wait for the device.

A worker's share of the global batch is cut into microbatches (`scale.images_per_microbatch`). The
loss of each is weighted by its share of the worker's images, so the gradients add up to the mean
over them; DDP averages over the workers once, in the last microbatch. The losses of a step stay on
the device as one vector. `StepMetrics` collects these vectors and the image ids of each step, and
copies them to the host only when a log line or a checkpoint needs them. A loss that is not finite
is found then, and is still reported with its exact step and images.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.data.batch import Batch
from pipeline.recipe import OptimConfig
from pipeline.training.color_jitter import jitter_colors
from pipeline.training.optim import FiniteOptimizer, clip_gradients, learning_rate
from pipeline.training.straggler import SyncClock

GRADIENT_NORM = "gradient_norm"
"""Name of the last entry of a step's vector; the others are the model's losses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerContext:
    """A worker's rank, the number of workers, and its device."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class StepOutput(NamedTuple):
    """Losses and gradient norm of one step, on the device."""

    names: tuple[str, ...]
    values: Tensor
    """(K + 1,) float32: K losses of this worker's images, then the gradient norm of all workers."""


def train_step(
    model: nn.Module,
    optimizer: FiniteOptimizer,
    *,
    microbatches: Sequence[Batch],
    step: int,
    optim: OptimConfig,
    device: torch.device,
    clock: SyncClock | None = None,
) -> StepOutput:
    """Accumulate the gradients of all microbatches and update the weights once.

    The update is skipped on the device if the gradients are not finite. The clock measures the pass
    that averages the gradients over the workers.
    """
    images = sum(len(batch.images) for batch in microbatches)
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for index, batch in enumerate(microbatches):
        share, is_last = len(batch.images) / images, index == len(microbatches) - 1
        on_device = jitter_colors(batch.to(device))
        with _sync_gradients(model, is_last=is_last):
            use_amp = optim.amp and device.type == "cuda"
            with torch.autocast(device.type, torch.bfloat16, enabled=use_amp):
                losses: dict[str, Tensor] = model(
                    on_device.images, on_device.image_sizes_hw, on_device.targets
                )
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            with clock.measure() if clock and is_last else nullcontext():
                (total * share).backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            part = loss.detach().float() * share
            sums[name] = sums[name] + part if name in sums else part
    norm = clip_gradients(model, max_norm=optim.clip_norm)
    optimizer.update(lr=learning_rate(optim, step=step), gradient_norm=norm)
    return StepOutput((*sums, GRADIENT_NORM), torch.stack([*sums.values(), norm.detach().float()]))


def derive_seed(*parts: int) -> int:
    """Derive the seed of a model's own sampling from the recipe's seed, the step and the rank."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _sync_gradients(model: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Let DDP average the gradients in the last microbatch only."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


@dataclass(slots=True)
class _Step:
    step: int
    epoch: int
    lr: float
    image_id: Tensor
    output: StepOutput


@dataclass(frozen=True, slots=True)
class Summary:
    """Metrics of several steps, over all workers."""

    means: dict[str, float]
    """Mean of each loss, their sum as "loss", and the gradient norm."""
    steps: int
    seconds: float
    data_wait_s: float
    """Time that the slowest worker waited for data."""
    own_s: tuple[float, ...] = ()
    """By rank, time in which a worker did not wait for others."""


@dataclass(frozen=True, slots=True)
class BadStep:
    """A step with a loss or gradient that is not finite."""

    step: int
    epoch: int
    lr: float
    workers: tuple[dict[str, Any], ...]
    """For each worker: rank, image_id (list), losses by name, finite (its own losses are)."""

    @property
    def image_ids(self) -> list[int]:
        """Images of the workers with a bad loss; if no worker has one, all images of the step."""
        bad = [worker for worker in self.workers if not worker["finite"]] or self.workers
        return [image for worker in bad for image in worker["image_id"]]


class StepMetrics:
    """Losses, gradient norms and timing of the steps since the last `reduce`."""

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self._steps: list[_Step] = []
        self._data_wait_s = 0.0
        self._started_s = time.perf_counter()
        self.clock = SyncClock(worker.device)
        """For `train_step`."""

    def add(
        self,
        output: StepOutput,
        *,
        step: int,
        epoch: int,
        lr: float,
        microbatches: Sequence[Batch],
    ) -> None:
        """Add a step; its numbers stay on the device."""
        image_id = torch.cat([batch.image_id for batch in microbatches])
        self._steps.append(_Step(step, epoch, lr, image_id, output))

    def next_batch(self, batches: Iterator[Any]) -> Any:  # noqa: ANN401  the iterator's type
        """Return the next item, or None at the end, and count the wait as data time."""
        started_s = time.perf_counter()
        item = next(batches, None)
        self._data_wait_s += time.perf_counter() - started_s
        return item

    def restart_clock(self) -> None:
        """Exclude the time since the last `reduce`."""
        self._started_s = time.perf_counter()
        self._data_wait_s = 0.0
        self.clock.take_s()

    def has_steps(self) -> bool:
        """Tell whether there are steps since the last `reduce`."""
        return bool(self._steps)

    def has_bad_step(self) -> bool:
        """Check the last gradient norm, on the CPU only: there it costs nothing.

        All workers have the same norm, so they agree.
        """
        last = self._steps[-1].output.values[-1]
        return last.device.type == "cpu" and not bool(torch.isfinite(last))

    def reduce(self) -> Summary | BadStep:
        """Combine the numbers of all workers, copy them to the host, and start over.

        Every worker must call this after the same step.
        """
        values = torch.stack([each.output.values for each in self._steps])  # (steps, K + 1)
        ok = torch.isfinite(values).all(dim=1)
        first_bad = torch.where(ok, len(ok), torch.arange(len(ok), device=ok.device)).min()
        row = torch.cat([values.double().mean(dim=0), first_bad[None].double()])
        # A GPU's clock waits for the last step, as the copy of the table does.
        synced_s = self.clock.take_s()
        own_s = time.perf_counter() - self._started_s - synced_s
        times = torch.tensor([own_s, self._data_wait_s], dtype=row.dtype, device=row.device)
        row = torch.cat([row, times])
        table = gather_rows(row, worker=self._worker).cpu()
        # Read the clock after the copy: until then a GPU may still be working on these steps.
        now_s = time.perf_counter()
        steps, self._steps = self._steps, []
        seconds, self._started_s = now_s - self._started_s, now_s
        data_wait_s, self._data_wait_s = float(table[:, -1].max()), 0.0
        bad_index = int(table[:, -3].min())
        if bad_index < len(steps):
            return _describe_bad_step(steps[bad_index], worker=self._worker)
        names = steps[0].output.names
        means = dict(zip(names, table[:, :-3].mean(dim=0).tolist(), strict=True))
        means["loss"] = sum(means[name] for name in names if name != GRADIENT_NORM)
        return Summary(means, len(steps), seconds, data_wait_s, tuple(table[:, -2].tolist()))


def gather_rows(row: Tensor, *, worker: WorkerContext) -> Tensor:
    """Stack a tensor of the same shape from every worker, by rank."""
    if worker.world_size == 1:
        return row[None]
    table = torch.empty((worker.world_size, *row.shape), dtype=row.dtype, device=row.device)
    dist.all_gather_into_tensor(table.flatten(), row.contiguous().flatten())
    return table


def _describe_bad_step(bad: _Step, *, worker: WorkerContext) -> BadStep:
    losses = dict(zip(bad.output.names, bad.output.values.tolist(), strict=True))
    mine: dict[str, Any] = {
        "rank": worker.rank,
        "image_id": bad.image_id.tolist(),
        "losses": losses,
        "finite": all(
            math.isfinite(value) for name, value in losses.items() if name != GRADIENT_NORM
        ),
    }
    workers: list[Any] = [mine]
    if worker.world_size > 1:
        workers = [None] * worker.world_size
        dist.all_gather_object(workers, mine)
    return BadStep(bad.step, bad.epoch, bad.lr, tuple(workers))
