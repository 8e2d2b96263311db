"""Bound what Ray Data's scheduling loop costs while its output waits for the trainer.

The loop waits only for running tasks. Once enough is prefetched there are none, and it spins for as
long as the workers take to consume a block: most of a core, in the process of the split.
"""

import time
from typing import Any

# Ray's public option takes subclasses of it.
from ray.data._internal.execution.execution_callback import ExecutionCallback

_PAUSE_S = 0.05
"""Far below the time in which a worker trains a block, so that none waits for the loop."""


class PacedScheduling(ExecutionCallback):
    """Pauses the loop after each step that leaves output to consume."""

    def on_execution_step(self, executor: Any) -> None:  # noqa: ANN401  Ray's
        """Pause, unless the workers have consumed everything."""
        _, output = executor._output_node  # noqa: SLF001  Ray has no other way to ask
        if len(output.output_queue):
            time.sleep(_PAUSE_S)
