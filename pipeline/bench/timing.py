"""Time things in turn, and compare them round by round.

The other load of a machine changes the times of all. So each round times every case once, ratios
are taken within a round, and the CPU time of a process stands beside the wall time: it hardly
changes while a process waits for a core.
"""

import gc
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

Clock = Literal["cpu", "wall"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Sample(NamedTuple):
    """Time and memory of one run of a case."""

    cpu_s: float
    """CPU seconds of this process and of its children that ended."""
    wall_s: float
    peak_mb: float | None = None
    """Most memory above that before the run, in 10^6 bytes."""

    def on(self, clock: Clock) -> float:
        """Return the seconds of a clock."""
        return self.cpu_s if clock == "cpu" else self.wall_s


Case: TypeAlias = Callable[[], Sample]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The median of several values, and the lowest and highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Summarize values."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))

    def __format__(self, spec: str) -> str:
        """Format as "1.05 (1.01 to 1.10)"."""
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


class Runs(dict[str, list[Sample]]):
    """The samples of each case, by round."""

    def seconds(self, name: str, clock: Clock) -> Spread:
        """Summarize the seconds of a case."""
        return Spread.of([sample.on(clock) for sample in self[name]])

    def ratio(self, over: str, under: str, clock: Clock) -> Spread:
        """Summarize the seconds of one case divided by those of another in the same round."""
        pairs = zip(self[over], self[under], strict=True)
        return Spread.of([a.on(clock) / b.on(clock) for a, b in pairs])


def time_in_turn(
    cases: Mapping[str, Case],
    *,
    rounds: int,
    print_line: Callable[[str], None],
    warm_ups: int = 1,
) -> Runs:
    """Run all cases in each round.

    Args:
        cases: by name.
        rounds: that count.
        print_line: called with a line after each round.
        warm_ups: rounds before those that count.
    """
    runs = Runs({name: [] for name in cases})
    for number in range(1 - warm_ups, rounds + 1):
        for name, case in cases.items():
            sample = case()
            if number > 0:
                runs[name].append(sample)
            else:
                print_line(f"warm-up  {name} {sample.cpu_s:.3f} s of CPU")
        if number > 0:
            times = "  ".join(f"{name} {samples[-1].cpu_s:.3f}" for name, samples in runs.items())
            print_line(f"round {number}/{rounds}, s of CPU  {times}")
    return runs


def timed(run: Callable[[], object]) -> Case:
    """Make a case of a function that runs in this process."""

    def case() -> Sample:
        gc.collect()
        before = _reset_peak_mb()
        cpu, wall = cpu_seconds(), time.perf_counter()
        result = run()
        sample = Sample(cpu_seconds() - cpu, time.perf_counter() - wall)
        peak_mb = max(_read_mb("VmHWM") - before, 0.0)
        # Freed only now: freeing is not part of the run, and a peak holds the result.
        del result
        return sample._replace(peak_mb=peak_mb)

    return case


def cpu_seconds() -> float:
    """Return the CPU seconds of this process so far, and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def read_peak_mb() -> float:
    """Return the most memory of this process since its start, in 10^6 bytes."""
    return _read_mb("VmHWM")


def _reset_peak_mb() -> float:
    """Forget the peak of this process' memory, and return what it takes now."""
    try:
        _CLEAR.write_text("5")
    except OSError:  # not Linux, or forbidden: the peak is that since the start
        return _read_mb("VmHWM")
    return _read_mb("VmRSS")


def _read_mb(key: str) -> float:
    """Read a value of this process' status, in 10^6 bytes; 0 where there is none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key)), 0.0)
