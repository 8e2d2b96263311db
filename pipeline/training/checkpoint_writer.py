"""Write checkpoints beside the training: a step waits only for a copy of the state.

The copies are kept for the next checkpoint, so that they take no new pages. At most one checkpoint
is being written: the next one waits for it, and so does the end of the training. A run that dies in
between resumes from the checkpoint before, as one that dies while it writes.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointRef, Identity, RandomState
from pipeline.training.optim import FiniteOptimizer
from pipeline.training.weight_average import WeightAverage


@dataclass(frozen=True, slots=True)
class StateCopy:
    """A state_dict on the CPU that no step changes."""

    content: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        """Return the copy."""
        return self.content


class CheckpointWriter:
    """Copies the state of a run, and writes it in a thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._copies: dict[str, Any] = {}

    def save(
        self,
        run_uri: str,
        *,
        model: nn.Module,
        optimizer: FiniteOptimizer,
        average: WeightAverage | None = None,
        step: int,
        epoch: int,
        identity: Identity,
        then: Callable[[], None],
    ) -> CheckpointRef:
        """Start to write the checkpoint after `step` steps, once the one before is whole.

        Args:
            run_uri: the run's folder.
            model: of the run.
            optimizer: of the run.
            average: of the weights, if the recipe averages them.
            step: steps done.
            epoch: epochs completed.
            identity: of the run.
            then: called when it is whole, in the thread.

        Raises:
            StorageError: the one before could not be written.
        """
        self.wait()
        sources: dict[str, checkpoint.HasState | None] = {
            "model": model,
            "optimizer": optimizer,
            "average": average,
        }
        self._copies = {
            name: _copy(source.state_dict(), self._copies.get(name))
            for name, source in sources.items()
            if source is not None
        }
        state = {name: StateCopy(content) for name, content in self._copies.items()}
        random_state = RandomState.capture()

        def write() -> None:
            checkpoint.save(
                run_uri,
                model=state["model"],
                optimizer=state["optimizer"],
                average=state.get("average"),
                step=step,
                epoch=epoch,
                identity=identity,
                random_state=random_state,
            )
            then()

        self._pending = self._pool.submit(write)
        return checkpoint.get_ref(run_uri, step=step)

    def wait(self) -> None:
        """Wait until the last checkpoint is whole.

        Raises:
            StorageError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> BaseException | None:
        """Wait, free the thread, and return what went wrong."""
        pending, self._pending = self._pending, None
        self._pool.shutdown()
        return pending.exception() if pending else None


def _copy(value: Any, kept: Any) -> Any:  # noqa: ANN401  a state_dict and all that is in it
    """Copy the tensors of nested containers, into those of the copy before where they fit."""
    match value:
        case Tensor():
            return _copy_tensor(value, kept)
        case Mapping():
            known = kept if isinstance(kept, Mapping) else {}
            items = {key: _copy(item, known.get(key)) for key, item in value.items()}
            # An OrderedDict stays one, as in a checkpoint without a copy.
            copied: Any = type(value)(items)  # type: ignore[call-arg]
            if hasattr(value, "_metadata"):  # versions of torch's modules
                copied._metadata = value._metadata  # noqa: SLF001
            return copied
        case list() | tuple():
            same = len(kept) == len(value) if isinstance(kept, list | tuple) else False
            before = kept if same else [None] * len(value)
            return type(value)(_copy(a, b) for a, b in zip(value, before, strict=True))
    return value


def _copy_tensor(value: Tensor, kept: Any) -> Tensor:  # noqa: ANN401
    if isinstance(kept, Tensor) and (kept.shape, kept.dtype) == (value.shape, value.dtype):
        return kept.copy_(value.detach())
    return torch.empty_like(value, device="cpu", requires_grad=False).copy_(value.detach())
