"""One optimizer step: several passes, one update, and nothing that waits for the device.

A worker's share of the global batch is cut into passes (`scale.images_per_microbatch`). Each pass's loss
is weighted by its share of the worker's images, so the gradients add up to the mean over them; DDP
takes the mean over workers once, in the last pass. Losses stay on the device as one vector for each
step. A `Window` keeps them, with the ids of the images that made them, until someone looks; that
look is where a loss that is not finite is found, and it still names the exact step and images.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.data.batch import Batch
from pipeline.recipe import OptimConfig
from pipeline.training.color_jitter import recolored
from pipeline.training.optim import FiniteOptimizer, clip_gradients, learning_rate

GRADIENT_NORM = "gradient_norm"
"""Name of the last entry of a step's vector; the others are the model's losses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Where a worker stands among the workers."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Measured(NamedTuple):
    """A step's numbers, still on the device."""

    names: tuple[str, ...]
    values: Tensor
    """(K + 1,) float32: K losses of this worker's images, then the gradient norm of all workers."""


def train_step(
    model: nn.Module,
    optimizer: FiniteOptimizer,
    *,
    passes: Sequence[Batch],
    step: int,
    optim: OptimConfig,
    device: torch.device,
) -> Measured:
    """Accumulate the gradients of all passes and update the weights once.

    A step whose gradients are not finite changes nothing: the update is skipped on the device.
    """
    images = sum(len(one.images) for one in passes)
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for index, batch in enumerate(passes):
        share = len(batch.images) / images
        on_device = recolored(batch.to(device))
        with _gradients_meet(model, last=index == len(passes) - 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=_mixed(optim, device)):
                losses: dict[str, Tensor] = model(
                    on_device.images, on_device.image_sizes_hw, on_device.targets
                )
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            (total * share).backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            part = loss.detach().float() * share
            sums[name] = sums[name] + part if name in sums else part
    norm = clip_gradients(model, max_norm=optim.clip_norm)
    optimizer.update(lr=learning_rate(optim, step=step), gradient_norm=norm)
    return Measured((*sums, GRADIENT_NORM), torch.stack([*sums.values(), norm.detach().float()]))


def _mixed(optim: OptimConfig, device: torch.device) -> bool:
    return optim.amp and device.type == "cuda"


def _gradients_meet(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Let DDP average the gradients in the last pass only."""
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


@dataclass(slots=True)
class _Step:
    step: int
    epoch: int
    lr: float
    image_id: Tensor
    measured: Measured


@dataclass(frozen=True, slots=True)
class Summary:
    """What a window of steps gave, over all workers."""

    means: dict[str, float]
    """Mean of each loss, their sum as "loss", and the gradient norm."""
    steps: int
    seconds: float
    waited_s: float
    """Time spent waiting for data on the slowest worker."""


@dataclass(frozen=True, slots=True)
class BadStep:
    """A step that gave a loss or gradient that is not finite."""

    step: int
    epoch: int
    lr: float
    workers: tuple[dict[str, Any], ...]
    """For each worker: rank, image_id (list), losses by name, finite (its own losses are)."""

    @property
    def image_ids(self) -> list[int]:
        """The images behind it: those of workers with a bad loss, else all images of the step."""
        guilty = [worker for worker in self.workers if not worker["finite"]] or self.workers
        return [image for worker in guilty for image in worker["image_id"]]


class Window:
    """The steps since the last look at the device."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._steps: list[_Step] = []
        self._waited_s = 0.0
        self._opened_s = time.perf_counter()

    def add(
        self, measured: Measured, *, step: int, epoch: int, lr: float, passes: Sequence[Batch]
    ) -> None:
        """Keep a step's numbers on the device, and the ids of its images."""
        ids = torch.cat([one.image_id for one in passes])
        self._steps.append(_Step(step, epoch, lr, ids, measured))

    def wait_for(self, batches: Iterator[Any]) -> Any:  # noqa: ANN401  what the iterator gives
        """Take the next item and count the time that it took; None at the end."""
        began = time.perf_counter()
        item = next(batches, None)
        self._waited_s += time.perf_counter() - began
        return item

    def restart_clock(self) -> None:
        """Leave out the time since the last look."""
        self._opened_s = time.perf_counter()
        self._waited_s = 0.0

    def looks_bad(self) -> bool:
        """Look at the last gradient norm at once, where that costs nothing: on the CPU.

        The norm is the same on all workers, so they all agree.
        """
        last = self._steps[-1].measured.values[-1]
        return last.device.type == "cpu" and not bool(torch.isfinite(last))

    def close(self) -> Summary | BadStep:
        """Read all numbers once, on all workers together, and start over.

        Every worker must call this after the same step.
        """
        values = torch.stack([one.measured.values for one in self._steps])  # (steps, K + 1)
        ok = torch.isfinite(values).all(dim=1)
        first_bad = torch.where(ok, len(ok), torch.arange(len(ok), device=ok.device)).min()
        row = torch.cat([values.double().mean(dim=0), first_bad[None].double()])
        row = torch.cat([row, torch.tensor([self._waited_s], device=row.device).double()])
        table = gather_rows(row, world=self._world).cpu()  # the one wait for the device
        # Not before: until here a GPU may still have had the window's steps before it.
        now = time.perf_counter()
        steps, self._steps = self._steps, []
        seconds, self._opened_s = now - self._opened_s, now
        waited_s, self._waited_s = float(table[:, -1].max()), 0.0
        bad_index = int(table[:, -2].min())
        if bad_index < len(steps):
            return _describe(steps[bad_index], world=self._world)
        names = steps[0].measured.names
        means = dict(zip(names, table[:, :-2].mean(dim=0).tolist(), strict=True))
        means["loss"] = sum(means[name] for name in names if name != GRADIENT_NORM)
        return Summary(means, len(steps), seconds, waited_s)


def gather_rows(row: Tensor, *, world: World) -> Tensor:
    """Stack one equally shaped tensor of every worker, by rank."""
    if world.size == 1:
        return row[None]
    table = torch.empty((world.size, *row.shape), dtype=row.dtype, device=row.device)
    dist.all_gather_into_tensor(table.flatten(), row.contiguous().flatten())
    return table


def _describe(bad: _Step, *, world: World) -> BadStep:
    values = bad.measured.values.tolist()
    losses = dict(zip(bad.measured.names, values, strict=True))
    mine: dict[str, Any] = {
        "rank": world.rank,
        "image_id": bad.image_id.tolist(),
        "losses": losses,
        "finite": all(
            math.isfinite(value) for name, value in losses.items() if name != GRADIENT_NORM
        ),
    }
    workers: list[Any] = [mine]
    if world.size > 1:
        workers = [None] * world.size
        dist.all_gather_object(workers, mine)
    return BadStep(bad.step, bad.epoch, bad.lr, tuple(workers))
