"""Print what a benchmark measured, and compare it with its bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.bench.timing import Clock, Runs, Sample
from pipeline.text import format_markdown

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A limit of the ratio of two cases' seconds."""

    over: str
    """The case whose seconds are divided."""
    under: str
    """The case by whose seconds they are divided."""
    at_least: float | None = None
    at_most: float | None = None
    clock: Clock = "cpu"

    @property
    def name(self) -> str:
        """Name of the ratio."""
        return f"{self.over} / {self.under}"

    def is_met(self, ratio: float) -> bool:
        """Tell whether a ratio is within the limits."""
        above = self.at_least is None or ratio >= self.at_least
        return above and (self.at_most is None or ratio <= self.at_most)

    def __str__(self) -> str:
        """Return the limits as text; "-" if there are none."""
        limits = {"at least": self.at_least, "at most": self.at_most}
        return ", ".join(f"{k} {v:g}" for k, v in limits.items() if v is not None) or "-"


def report(
    runs: Runs,
    bars: Sequence[Bar],
    *,
    rates: Mapping[str, tuple[float, str]] | None = None,
    **facts: object,
) -> Result:
    """Print the seconds of all cases and all ratios as one table, and return them.

    Args:
        runs: of all cases.
        bars: the ratios to show.
        rates: how many things a run of a case does, and their name; shown as things per CPU second.
        facts: added to the result.
    """
    rates = rates or {}
    rows = [["case", "CPU, s", "wall, s", "per CPU second", "peak, MB"]]
    for name, samples in runs.items():
        cpu = runs.seconds(name, "cpu")
        count, things = rates.get(name, (0.0, ""))
        peak = _peak_mb(samples)
        rows.append(
            [
                name,
                f"{cpu:.3f}",
                f"{runs.seconds(name, 'wall'):.3f}",
                f"{count / cpu.median:.1f} {things}" if things else "-",
                "-" if peak is None else f"{peak:.0f}",
            ]
        )
    for bar in bars:
        ratios = {clock: runs.ratio(bar.over, bar.under, clock) for clock in ("cpu", "wall")}
        met = bar.is_met(ratios[bar.clock].median)
        verdict = "" if str(bar) == "-" else f"{bar}: {'yes' if met else 'NO'}"
        rows.append([bar.name, f"{ratios['cpu']:.2f}", f"{ratios['wall']:.2f}", verdict, ""])
    print(format_markdown(rows))  # noqa: T201  the answer of the command
    return {**facts, **_to_result(runs, bars)}


def _peak_mb(samples: Sequence[Sample]) -> float | None:
    return max((each.peak_mb for each in samples if each.peak_mb is not None), default=None)


def _to_result(runs: Runs, bars: Sequence[Bar]) -> Result:
    result: Result = {}
    for name, samples in runs.items():
        result[f"{name}: CPU s"] = round(runs.seconds(name, "cpu").median, 4)
        result[f"{name}: wall s"] = round(runs.seconds(name, "wall").median, 4)
        peak = _peak_mb(samples)
        if peak is not None:
            result[f"{name}: peak MB"] = round(peak)
    missed = []
    for bar in bars:
        ratio = runs.ratio(bar.over, bar.under, bar.clock)
        result[bar.name] = [round(each, 3) for each in (ratio.median, ratio.low, ratio.high)]
        if not bar.is_met(ratio.median):
            missed.append(bar.name)
    return {**result, "missed": missed}
