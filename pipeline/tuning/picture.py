"""A sweep as a picture: the curve of kernel sizes (Fig. 6) with its spread, and what mattered."""

import io
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from pipeline.tuning.results import Importance, KernelPoint
from pipeline.tuning.space import Sweep, short

_BLUE, _ORANGE, _GRAY = "#1f6fb4", "#d9711a", "#8a8a8a"


def picture(sweep: Sweep, curve: Sequence[KernelPoint], importance: Importance) -> bytes:
    """Draw a sweep; a PNG."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_curve(left, sweep, curve)
    _draw_importance(right, importance)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()


def _draw_curve(axes: Axes, sweep: Sweep, curve: Sequence[KernelPoint]) -> None:
    sizes = [point.kernel_size for point in curve]
    finished = [(point.kernel_size, value) for point in curve for value in point.finished]
    stopped = [(point.kernel_size, value) for point in curve for value in point.stopped]
    several = [point for point in curve if point.finished]
    axes.errorbar(
        [point.kernel_size for point in several],
        [point.mean for point in several],
        yerr=[point.spread for point in several],
        color=_ORANGE,
        capsize=4,
        linewidth=1,
        linestyle="none",
        marker="_",
        markersize=14,
        label="finished: mean and standard deviation",
    )
    axes.plot(
        sizes,
        [point.baseline for point in curve],
        color=_BLUE,
        marker="o",
        label="the recipe, only the kernel changed",
    )
    for points, face, label in (
        (finished, _ORANGE, "finished trials"),
        (stopped, "none", "stopped early, when they were"),
    ):
        if points:
            axes.scatter(
                [x for x, _ in points],
                [y for _, y in points],
                s=22,
                facecolors=face,
                edgecolors=_ORANGE if face != "none" else _GRAY,
                label=label,
                zorder=3,
            )
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.set_xlabel("kernel size [RoI cells]")
    axes.set_ylabel(sweep.metric)
    axes.set_title(f"{sweep.recipe.name}: {sweep.recipe.optim.steps} steps a trial")
    axes.grid(visible=True, alpha=0.25)
    axes.legend(fontsize=8)


def _draw_importance(axes: Axes, importance: Importance) -> None:
    shares = {short(name): share for name, share in reversed(list(importance.shares.items()))}
    axes.barh(list(shares), list(shares.values()), color=_BLUE)
    for index, share in enumerate(shares.values()):
        if math.isfinite(share):
            axes.text(share, index, f" {share:.2f}", va="center", fontsize=9)
    axes.set_xlim(0, 1.12)
    axes.set_xlabel(
        f"share of the differences between {importance.trials} trials at step {importance.step}"
    )
    axes.set_title("what mattered" if shares else "too few different trials to say what mattered")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
