"""Plot a sweep: the metric by kernel size (Fig. 6), and the importance of each value."""

import io
from collections.abc import Sequence
from statistics import fmean, pstdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from pipeline.tuning.results import Importance, KernelPoint
from pipeline.tuning.space import Sweep, short_name

# Okabe and Ito's, which color-blind readers can tell apart.
BLUE, ORANGE = "#0072b2", "#d55e00"


def plot_sweep(sweep: Sweep, curve: Sequence[KernelPoint], importance: Importance) -> bytes:
    """Plot a sweep as a PNG."""
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    final, early, shares = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    plot_final(final, sweep, curve)
    plot_early(early, sweep, curve, step=importance.step)
    plot_importance(shares, importance)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def plot_final(axes: Axes, sweep: Sweep, curve: Sequence[KernelPoint]) -> None:
    """Plot the metric after the last step by kernel size, of baselines and of all that finished."""
    sizes = [point.kernel_size for point in curve]
    axes.plot(
        sizes,
        [point.baseline for point in curve],
        color=BLUE,
        marker="o",
        label="the recipe with only the kernel changed",
    )
    finished = {point.kernel_size: point.finished for point in curve}
    _plot_trials(axes, finished, label="finished trials")
    axes.set_title(f"{sweep.recipe.name}: after the last step, {sweep.recipe.optim.steps}")
    _label_axes(axes, sweep, sizes)


def plot_early(axes: Axes, sweep: Sweep, curve: Sequence[KernelPoint], *, step: int) -> None:
    """Plot the metric of all trials by kernel size, at the last step that all of them reached."""
    _plot_trials(axes, {point.kernel_size: point.early for point in curve}, label="all trials")
    axes.set_title(f"all trials, at step {step}")
    _label_axes(axes, sweep, [point.kernel_size for point in curve])


def _label_axes(axes: Axes, sweep: Sweep, sizes: Sequence[int]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.set_xlabel("kernel size [RoI cells]")
    axes.set_ylabel(sweep.metric)
    axes.grid(visible=True, alpha=0.25)
    # Space for the legend above the points.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))
    axes.legend(fontsize=8, loc="upper right")


def _plot_trials(axes: Axes, by_size: dict[int, tuple[float, ...]], *, label: str) -> None:
    """Plot each trial as a point, and the spread of kernel sizes with several trials."""
    points = [(size, value) for size, values in by_size.items() for value in values]
    axes.scatter(
        [x for x, _ in points], [y for _, y in points], s=16, color=ORANGE, label=label, zorder=3
    )
    several = {size: values for size, values in by_size.items() if len(values) > 1}
    if not several:
        return
    axes.errorbar(
        list(several),
        [fmean(values) for values in several.values()],
        yerr=[pstdev(values) for values in several.values()],
        color=ORANGE,
        capsize=4,
        linewidth=1,
        linestyle="none",
        marker="_",
        markersize=14,
        label="their mean and standard deviation",
    )


def plot_importance(axes: Axes, importance: Importance) -> None:
    """Plot the importance of each searched value as bars."""
    shares = {short_name(name): share for name, share in reversed(list(importance.shares.items()))}
    if not shares:
        axes.set_axis_off()
        axes.set_title("too few different trials to estimate importance")
        return
    axes.barh(list(shares), list(shares.values()), color=BLUE)
    for index, share in enumerate(shares.values()):
        axes.text(share, index, f" {share:.2f}", va="center", fontsize=9)
    axes.set_xlim(0, 1.12)
    axes.set_xlabel("share of the variance (fANOVA)")
    axes.set_title(f"importance at step {importance.step}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
