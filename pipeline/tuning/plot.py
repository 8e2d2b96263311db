"""Plot a sweep: the metric by kernel size (Fig. 6), and the importance of each value."""

import io
from collections.abc import Sequence
from statistics import fmean, pstdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from pipeline.tuning.results import Importance, KernelPoint
from pipeline.tuning.space import Sweep, short_name

_BLUE, _ORANGE = "#1f6fb4", "#d9711a"


def plot_sweep(sweep: Sweep, curve: Sequence[KernelPoint], importance: Importance) -> bytes:
    """Plot a sweep as a PNG."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    final, early, shares = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    sizes = [point.kernel_size for point in curve]
    final.plot(
        sizes,
        [point.baseline for point in curve],
        color=_BLUE,
        marker="o",
        label="the recipe with only the kernel changed",
    )
    _plot_trials(
        final, {point.kernel_size: point.finished for point in curve}, label="finished trials"
    )
    final.set_title(f"{sweep.recipe.name}: after the last step, {sweep.recipe.optim.steps}")
    _plot_trials(early, {point.kernel_size: point.early for point in curve}, label="all trials")
    early.set_title(f"all trials, at step {importance.step}")
    for axes in (final, early):
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.set_xlabel("kernel size [RoI cells]")
        axes.set_ylabel(sweep.metric)
        axes.grid(visible=True, alpha=0.25)
        # Space for the legend above the points.
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.2 * (high - low))
        axes.legend(fontsize=8, loc="upper right")
    _plot_importance(shares, importance)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def _plot_trials(axes: Axes, by_size: dict[int, tuple[float, ...]], *, label: str) -> None:
    """Plot each trial as a point, and the spread of kernel sizes with several trials."""
    points = [(size, value) for size, values in by_size.items() for value in values]
    axes.scatter(
        [x for x, _ in points], [y for _, y in points], s=16, color=_ORANGE, label=label, zorder=3
    )
    several = {size: values for size, values in by_size.items() if len(values) > 1}
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


def _plot_importance(axes: Axes, importance: Importance) -> None:
    shares = {short_name(name): share for name, share in reversed(list(importance.shares.items()))}
    if not shares:
        axes.set_axis_off()
        axes.set_title("too few different trials to estimate importance")
        return
    axes.barh(list(shares), list(shares.values()), color=_BLUE)
    for index, share in enumerate(shares.values()):
        axes.text(share, index, f" {share:.2f}", va="center", fontsize=9)
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("share of the variance (fANOVA)")
    axes.set_title(f"importance at step {importance.step}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
