"""Summarize a study of mask heads: means, paired differences with intervals, a table and a plot.

Two things differ from run to run and limit what a difference of two heads means: the seed of
training, and the photos that happen to be in the test set. Each has its own 95 % interval:

    seeds   Student's t over the differences of equal seeds
    photos  the differences of each object, averaged over seeds, with the photos as clusters:
            objects of one photo are not independent
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.mask_quality import LARGE_PX
from pipeline.text import format_markdown

BANDS = {"boundary": 0.02, "narrow": 0.005}
"""Width of the compared bands in image diagonals: COCO's, and Cityscapes'."""

SMALL_PX = 32**2
"""Smallest area of a medium object in COCO."""

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantile of Student's t for 95 %, by degrees of freedom from 1."""
_Z_975 = 1.960

Floats = NDArray[np.float64]
_Selector = Callable[[Floats], NDArray[np.bool_]]

SIZES: dict[str, _Selector] = {
    "all": lambda area_px: np.ones(len(area_px), dtype=np.bool_),
    "small": lambda area_px: area_px < SMALL_PX,
    "medium": lambda area_px: (area_px >= SMALL_PX) & (area_px < LARGE_PX),
    "large": lambda area_px: area_px >= LARGE_PX,
}

COLUMNS = (("mask", "all"), *((name, size) for name in BANDS for size in SIZES))
"""Columns of the table: the measure, and the size of the objects."""

GAINS = (("boundary", "all"), ("narrow", "all"), ("narrow", "large"))
"""Columns of the table of differences."""

_TITLES = {"mask": "mask IoU", "boundary": "boundary IoU, 2 %", "narrow": "boundary IoU, 0.5 %"}


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRun:
    """Quality of every mask of one head trained with one seed; same objects in every run."""

    head: str
    seed: int
    train_s: float
    image_id: list[int]
    area_px: list[float]
    iou: dict[str, list[float]]
    """By measure: mask, and the bands of BANDS; 0..1."""

    def mean(self, measure: str, size: str) -> float:
        """Average a measure over the objects of a size; NaN without any."""
        values = np.array(self.iou[measure])[SIZES[size](np.array(self.area_px))]
        return float(values.mean()) if values.size else math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """Mean difference of two heads, with half the width of its 95 % intervals."""

    mean: float
    seeds: float
    """NaN for one seed."""
    photos: float
    """NaN for one photo."""


def find_heads(runs: Sequence[HeadRun], heads: Sequence[str]) -> dict[str, list[HeadRun]]:
    """Group the runs by head, in the given order; heads without runs are left out."""
    names = dict.fromkeys([*heads, *sorted({run.head for run in runs})])
    grouped = {name: [run for run in runs if run.head == name] for name in names}
    return {name: own for name, own in grouped.items() if own}


def compare(
    runs: Sequence[HeadRun], others: Sequence[HeadRun], *, measure: str, size: str
) -> Gain | None:
    """Compare two heads over their common seeds; None without one, or without such objects."""
    by_seed = {run.seed: run for run in others}
    pairs = [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]
    if not pairs:
        return None
    chosen = SIZES[size](np.array(pairs[0][0].area_px))
    if not chosen.any():
        return None
    gains = np.array([np.subtract(a.iou[measure], b.iou[measure])[chosen] for a, b in pairs])
    per_seed = gains.mean(axis=1).tolist()
    seeds = math.nan
    if len(per_seed) > 1:
        freedom = len(per_seed) - 1
        quantile = _T_975[freedom - 1] if freedom <= len(_T_975) else _Z_975
        seeds = quantile * statistics.stdev(per_seed) / math.sqrt(len(per_seed))
    photos = _measure_photo_interval(gains.mean(axis=0), np.array(pairs[0][0].image_id)[chosen])
    return Gain(mean=statistics.mean(per_seed), seeds=seeds, photos=photos)


def format_table(runs: Sequence[HeadRun], *, heads: Sequence[str]) -> str:
    """Format a Markdown table in percent: means, and standard deviations over seeds."""
    header = [_TITLES[name] if size == "all" else size for name, size in COLUMNS]
    rows = [["head", "seeds", *header]]
    for head, own in find_heads(runs, heads).items():
        cells = [
            _format_spread([run.mean(name, size) for run in own], always=size in {"all", "large"})
            for name, size in COLUMNS
        ]
        rows.append([head, str(len(own)), *cells])
    return format_markdown(rows)


def format_gains(runs: Sequence[HeadRun], *, heads: Sequence[str], reference: str) -> str:
    """Format a Markdown table of the differences to a head, with their two 95 % intervals."""
    grouped = find_heads(runs, heads)
    header = [
        _TITLES[name] if size == "all" else f"{_TITLES[name]}, {size}" for name, size in GAINS
    ]
    columns = [part for title in header for part in (title, "+- seeds", "+- photos")]
    rows = [[f"over {reference}", "seeds", *columns]]
    for head, own in grouped.items():
        if head == reference or reference not in grouped:
            continue
        seeds = {run.seed for run in own} & {run.seed for run in grouped[reference]}
        cells = []
        for name, size in GAINS:
            gain = compare(own, grouped[reference], measure=name, size=size)
            cells += ["", "", ""] if gain is None else _format_gain(gain)
        rows.append([head, str(len(seeds)), *cells])
    return format_markdown(rows)


def draw_plot(runs: Sequence[HeadRun], path: Path, *, heads: Sequence[str], title: str) -> None:
    """Plot every run and the means, one line per head: both bands, and large objects."""
    import matplotlib as mpl  # noqa: PLC0415  a second of imports

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    grouped = find_heads(runs, heads)
    figure, axes = plt.subplots(
        1, len(GAINS), figsize=(13, 1.3 + 0.36 * len(grouped)), sharey=True, layout="constrained"
    )
    for axis, (name, size) in zip(axes, GAINS, strict=True):
        for line, own in enumerate(grouped.values()):
            values = [100 * run.mean(name, size) for run in own]
            axis.plot(values, [line] * len(values), "o", color="#3b6fb6", alpha=0.55, ms=6)
            axis.plot([statistics.mean(values)], [line], "|", color="#c0392b", ms=16, mew=2.5)
        axis.set_xlabel(f"{_TITLES[name]}{'' if size == 'all' else f', {size} objects'}")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(b=False)
    axes[0].set_yticks(range(len(grouped)), list(grouped))
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _measure_photo_interval(gains: Floats, image_id: NDArray[np.int64]) -> float:
    """Compute half the 95 % interval of a mean over objects whose photos are a sample."""
    _, photo = np.unique(image_id, return_inverse=True)
    sums = np.bincount(photo, weights=gains - gains.mean())
    if len(sums) < 2:
        return math.nan
    variance = len(sums) / (len(sums) - 1) * float((sums**2).sum()) / len(gains) ** 2
    return _Z_975 * math.sqrt(variance)


def _format_gain(gain: Gain) -> list[str]:
    return [
        f"{100 * gain.mean:+.2f}",
        *("" if math.isnan(half) else f"{100 * half:.2f}" for half in (gain.seeds, gain.photos)),
    ]


def _format_spread(values: Sequence[float], *, always: bool) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} +- {100 * statistics.stdev(values):.1f}" if always and len(values) > 1 else mean
