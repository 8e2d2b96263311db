"""Options of a server: address, limits, batches and resources."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from bsm.configs.rules import NonNegativeFloat, PositiveFloat, PositiveInt
from pipeline.recipe import RecipePart

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions(RecipePart):
    """Address, limits, batches and resources of a server."""

    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine. 0.0.0.0 is every network."""
    port: Annotated[int, Interval(ge=1, le=65535)] = 8000
    """Port to listen on."""
    max_bytes: PositiveInt = 32_000_000
    """Largest photo, in bytes of the file."""
    max_pixels: PositiveInt = 50_000_000
    """Largest photo, in pixels; read from its header, before it is decoded."""
    max_masks: PositiveInt = 100
    """Largest number of masks that a refiner takes with a photo; together they may have as many
    bytes as a photo."""
    max_batch: PositiveInt = 4
    """Largest number of photos predicted at once; those of equal size share a forward pass."""
    batch_wait_ms: NonNegativeFloat = 10
    """Longest time that a photo waits for others of its batch."""
    max_waiting: PositiveInt = 64
    """Photos that may wait for a prediction; further ones are answered with 503."""
    timeout_s: PositiveFloat = 60
    """Longest time of a request; after it the answer is 408."""
    check_alias_s: PositiveFloat = 10
    """Seconds between two looks at the alias in the registry."""
    replicas: PositiveInt = 1
    """Processes with a copy of the models each."""
    cpus: NonNegativeFloat = 1
    """CPUs that Ray reserves for each replica."""
    gpus: NonNegativeFloat = 0
    """GPUs that Ray reserves for each replica."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that a batch can be filled."""
        if self.max_batch > self.max_waiting:
            yield (
                "max_batch",
                f"cannot exceed max_waiting, got {self.max_batch} and {self.max_waiting}",
            )
