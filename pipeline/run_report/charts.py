"""Charts as SVG inside a page: their text and axes take the page's color, in light and dark.

matplotlib draws them without a display; text stays text, so a chart is a few KB.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's colors for color-blind readers, without black and yellow, which one of the two
# backgrounds would swallow.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00")

# Any color that nothing else has.
_INK = "#010203"

_PAGE_COLORS = {_INK: "currentColor", COLORS[0]: "var(--blue)"}
"""Colors that the page chooses for its background; blue is too dark for the dark one."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # The same run gives the same bytes.
    "svg.hashsalt": "report",
    # Names from data sets may have a $.
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "axes.formatter.limits": (-3, 5),
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    ),
    "grid.color": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}

_LINES = ("-", "--", "-.", ":")

_MAX_NAME = 24
"""Longer names leave no room for the chart."""

_LEAST_TOP = 5
"""Percent that an axis of scores reaches at least: noise near 0 does not fill the chart."""

MAX_POINTS = 300
"""Longer curves are averaged to this many points."""

Points = Sequence[tuple[int, float]]


class Chart(NamedTuple):
    """A chart of a page."""

    svg: Markup
    is_wide: bool = True
    """Whether it needs half of a wide page, or less."""


@contextmanager
def draw(
    caption: str, *, width_in: float = 4.6, height_in: float = 2.6
) -> Iterator[tuple[Figure, list[Chart]]]:
    """Give a figure to draw on; afterwards the list holds its chart."""
    charts: list[Chart] = []
    with mpl.rc_context(_STYLE):
        is_wide = width_in >= 4
        # A page has many small charts, whose simple layout takes two thirds of the time.
        layout: Literal["constrained", "tight"] = "constrained" if is_wide else "tight"
        figure = Figure(figsize=(width_in, height_in), layout=layout)
        yield figure, charts
        charts.append(Chart(to_svg(figure, caption), is_wide=is_wide))


def to_svg(figure: Figure, caption: str) -> Markup:
    """Turn a figure into SVG for a page: as wide as its place, in the colors of the page."""
    out = io.StringIO()
    with warnings.catch_warnings():
        # matplotlib only measures the text; the page's font has more scripts.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several charts on a page would have the same ids; only those that are used stay.
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', text))
    text = re.sub(r' id="([\w-]+)"', lambda m: m[0] if m[1] in used else "", text)
    for color, of_page in _PAGE_COLORS.items():
        text = text.replace(color, of_page)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = Markup.escape(caption)
    width_px = figure.get_figwidth() * 110
    opening = f'<svg role="img" aria-label="{label}" style="max-width:{width_px:.0f}px"'
    # What users name is in the text nodes, which matplotlib escapes.
    return Markup(text.replace("<svg", opening, 1))  # noqa: S704


def plot_curves(curves: Mapping[str, Points], *, title: str, unit: str, caption: str) -> Chart:
    """Plot a metric of one or two runs by step, each with its validation where there is one.

    Args:
        curves: points by name.
        title: of the metric.
        unit: of the metric, on its axis.
        caption: for readers who do not see it.
    """
    with draw(caption, width_in=2.9, height_in=1.9) as (figure, charts):
        axes = figure.subplots()
        for (name, points), color, line in zip(curves.items(), COLORS, _LINES, strict=False):
            steps, values = thin(points)
            marker = "." if len(steps) < 12 else ""
            axes.plot(steps, values, line, color=color, label=name, marker=marker)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        if len(curves) > 1:
            axes.legend()
    return charts[0]


def plot_groups(groups: Mapping[str, Mapping[str, float]], *, unit: str, caption: str) -> Chart:
    """Plot bars side by side: a group for each key, a bar for each of its values; NaN has none."""
    labels = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    with draw(caption) as (figure, charts):
        axes = figure.subplots()
        for index, (name, values) in enumerate(groups.items()):
            places = np.arange(len(labels)) + (index - (len(groups) - 1) / 2) * width
            heights = np.array([values[label] for label in labels])
            axes.bar(places, np.nan_to_num(heights), width * 0.92, color=COLORS[index], label=name)
            _write_numbers(axes, places, heights)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_ylabel(unit)
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.12)
        axes.set_ylim(top=max(axes.get_ylim()[1], _LEAST_TOP))
        figure.legend(loc="outside upper left", ncols=len(groups))
    return charts[0]


def plot_categories(scores: Mapping[str, Mapping[str, float]], *, unit: str, caption: str) -> Chart:
    """Plot a row for each category with a mark for each of its scores.

    Args:
        scores: by category, then by metric, in the order from the top.
        unit: of all scores.
        caption: for readers who do not see it.
    """
    names = [_shorten(name) for name in scores]
    metrics = list(next(iter(scores.values())))
    with draw(caption, height_in=0.9 + 0.19 * len(names)) as (figure, charts):
        axes = figure.subplots()
        for metric, color, marker in zip(metrics, COLORS, "osD^v*", strict=False):
            values = [each.get(metric, np.nan) for each in scores.values()]
            places = range(len(names))
            axes.plot(values, places, marker, color=color, markersize=5, label=metric)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(left=0, right=max(axes.get_xlim()[1], _LEAST_TOP))
        axes.set_xlabel(unit)
        figure.legend(loc="outside upper left", ncols=len(metrics))
    return charts[0]


def plot_matrix(
    shares: NDArray[np.float64], *, rows: Sequence[str], columns: Sequence[str], caption: str
) -> Chart:
    """Plot a matrix of shares of each row, with the percentages that are not 0.

    Args:
        shares: (R, C), each row with sum 1 or all NaN.
        rows: names of the rows.
        columns: names of the columns.
        caption: for readers who do not see it.
    """
    side = 0.34 if len(rows) > 12 else 0.45
    size = (1.6 + side * len(columns), 1.3 + side * len(rows))
    with draw(caption, width_in=max(size[0], 4), height_in=size[1]) as (figure, charts):
        axes = figure.subplots()
        for (row, column), share in np.ndenumerate(shares):
            if not share > 0:
                continue
            corner = (column - 0.5, row - 0.5)
            patch = mpl.patches.Rectangle(corner, 1, 1, color=COLORS[0], alpha=0.1 + 0.75 * share)
            axes.add_patch(patch)
            if share >= 0.005:
                text = f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        below = [_shorten(name) for name in columns]
        axes.set_xticks(range(len(below)), below, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(rows)), [_shorten(name) for name in rows])
        axes.set_xlabel("predicted [% of the row]")
        axes.set_ylabel("true")
        axes.grid(visible=False)
    return charts[0]


def thin(points: Points) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average neighboring points of a long curve; return steps and values."""
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    if len(array) <= MAX_POINTS:
        return array[:, 0], array[:, 1]
    parts = np.array_split(array, MAX_POINTS)
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0], means[:, 1]


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3]}..."


def _write_numbers(axes: Axes, places: NDArray[Any], heights: NDArray[np.float64]) -> None:
    for place, height in zip(places, heights, strict=True):
        text = "-" if np.isnan(height) else f"{height:.1f}"
        axes.text(place, np.nan_to_num(height), text, ha="center", va="bottom", fontsize=7)


def plot_histogram(values: NDArray[np.float64], *, label: str, unit: str, caption: str) -> Chart:
    """Plot how often values between 0 and 1 occur, in 20 bins."""
    with draw(caption) as (figure, charts):
        axes = figure.subplots()
        axes.hist(values, bins=np.linspace(0, 1, 21).tolist(), color=COLORS[0], rwidth=0.92)
        axes.set_xlabel(label)
        axes.set_ylabel(unit)
    return charts[0]


def plot_calibration(
    means: NDArray[np.float64], rates: NDArray[np.float64], counts: NDArray[np.int64]
) -> Chart:
    """Plot the share of right detections by score, above the number of detections.

    Args:
        means: (10,) mean score of each bin; NaN without detections.
        rates: (10,) share of right detections.
        counts: (10,) detections.
    """
    with draw("Calibration of scores", height_in=3.6) as (figure, charts):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], "--", color=_INK, alpha=0.5, linewidth=1)
        upper.plot(means, rates, "o-", color=COLORS[0], markersize=4)
        upper.set_ylabel("share right")
        upper.set_ylim(-0.02, 1.02)
        lower.bar(np.arange(10) / 10 + 0.05, counts, 0.092, color=COLORS[0])
        lower.set_xlabel("score")
        lower.set_ylabel("detections")
        lower.set_xlim(0, 1)
    return charts[0]
