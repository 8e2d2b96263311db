"""Gather what each worker did of a shared work."""

from collections.abc import Mapping
from typing import TypeVar

import torch.distributed as dist

from pipeline.training.step import WorkerContext

Part = TypeVar("Part")


def gather_parts(mine: Mapping[int, Part], *, worker: WorkerContext) -> dict[int, Part]:
    """Gather the parts of all workers on rank 0; every worker must call this.

    Args:
        mine: this worker's parts, by number.
        worker: the calling worker.

    Returns:
        On rank 0 all parts, by number; on other workers none.
    """
    if worker.world_size == 1:
        return dict(mine)
    gathered: list[Mapping[int, Part]] | None = (
        [{}] * worker.world_size if worker.rank == 0 else None
    )
    dist.gather_object(mine, gathered, dst=0)
    return {index: part for parts in gathered or [] for index, part in parts.items()}
