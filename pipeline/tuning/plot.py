"""A sweep as a picture: the curve of kernel sizes (Fig. 6) with its spread, and what mattered."""

import io
from collections.abc import Sequence
from statistics import fmean, pstdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from pipeline.tuning.results import Importance, KernelPoint
from pipeline.tuning.space import Sweep, short

_BLUE, _ORANGE = "#1f6fb4", "#d9711a"


def picture(sweep: Sweep, curve: Sequence[KernelPoint], importance: Importance) -> bytes:
    """Draw a sweep; a PNG."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    late, early, mattered = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    sizes = [point.kernel_size for point in curve]
    late.plot(
        sizes,
        [point.baseline for point in curve],
        color=_BLUE,
        marker="o",
        label="the recipe with only the kernel changed",
    )
    _draw(late, {point.kernel_size: point.finished for point in curve}, label="finished trials")
    late.set_title(f"{sweep.recipe.name}: trained to their end, step {sweep.recipe.optim.steps}")
    _draw(early, {point.kernel_size: point.early for point in curve}, label="all trials")
    early.set_title(f"all trials, at step {importance.step}")
    for axes in (late, early):
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.set_xlabel("kernel size [RoI cells]")
        axes.set_ylabel(sweep.metric)
        axes.grid(visible=True, alpha=0.25)
        # Room for the legend above the points.
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.2 * (high - low))
        axes.legend(fontsize=8, loc="upper right")
    _draw_importance(mattered, importance)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def _draw(axes: Axes, reached: dict[int, tuple[float, ...]], *, label: str) -> None:
    """Draw each trial as a point, and where a kernel size has several, how they spread."""
    there = {size: values for size, values in reached.items() if values}
    points = [(size, value) for size, values in there.items() for value in values]
    axes.scatter(
        [x for x, _ in points], [y for _, y in points], s=16, color=_ORANGE, label=label, zorder=3
    )
    several = {size: values for size, values in there.items() if len(values) > 1}
    if not several:
        return
    axes.errorbar(
        list(several),
        [fmean(values) for values in several.values()],
        yerr=[pstdev(values) for values in several.values()],
        color=_ORANGE,
        capsize=4,
        linewidth=1,
        linestyle="none",
        marker="_",
        markersize=14,
        label="their mean and standard deviation",
    )


def _draw_importance(axes: Axes, importance: Importance) -> None:
    shares = {short(name): share for name, share in reversed(list(importance.shares.items()))}
    if not shares:
        axes.set_axis_off()
        axes.set_title("too few different trials to say what mattered")
        return
    axes.barh(list(shares), list(shares.values()), color=_BLUE)
    for index, share in enumerate(shares.values()):
        axes.text(share, index, f" {share:.2f}", va="center", fontsize=9)
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("share of the differences (fANOVA)")
    axes.set_title(f"what mattered at step {importance.step}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
