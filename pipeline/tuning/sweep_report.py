"""The report of a sweep: one HTML file with all trials, beside the files of the sweep."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna

from pipeline import storage
from pipeline.errors import RecipeError
from pipeline.evaluation.checkpoint_metrics import load_metrics
from pipeline.recipe import from_dict
from pipeline.recipe_json import leaves, to_plain
from pipeline.run_report.charts import Chart, draw
from pipeline.run_report.page import Page, Section, Table, write_page
from pipeline.tuning import plot
from pipeline.tuning.results import (
    Importance,
    TrialResult,
    build_kernel_curve,
    estimate_importance,
    find_common_step,
    find_winner,
    format_trials_csv,
)
from pipeline.tuning.space import Range, Sweep, kernel_field, short_name, trial_name

DECLARED = "sweep.json"
TRIALS_FILE = "trials.csv"


def write_sweep_report(
    sweep: Sweep, trials: Sequence[TrialResult], *, folder: str, out: str = ""
) -> str:
    """Write the report of a sweep.

    Args:
        sweep: its declaration.
        trials: all of its trials.
        folder: of the sweep, STORAGE/NAME.
        out: file to write; "" is report.html in the folder.

    Returns:
        The URI of the report.

    Raises:
        StorageError: it cannot be written.
    """
    return write_page(build_page(sweep, trials, folder=folder), folder=folder, out=out)


def is_sweep(folder: str) -> bool:
    """Check whether a folder is that of a sweep."""
    return storage.exists(storage.join(folder, DECLARED))


def read_sweep(folder: str) -> tuple[Sweep, list[TrialResult]]:
    """Read a sweep and its trials from its folder.

    Raises:
        RecipeError: the sweep has not ended.
        StorageError: a file cannot be read.
    """
    if not storage.exists(storage.join(folder, TRIALS_FILE)):
        raise RecipeError(
            f"{folder} has no {TRIALS_FILE}: the sweep has not ended. Resume it with the command "
            "that started it and --resume"
        )
    plain = json.loads(storage.read_bytes(storage.join(folder, DECLARED)))
    sweep = Sweep(
        **{
            **plain,
            "recipe": from_dict(plain["recipe"]),
            "ranges": tuple(Range(**each) for each in plain["ranges"]),
            "kernel_sizes": tuple(plain["kernel_sizes"]),
        }
    )
    text = storage.read_bytes(storage.join(folder, TRIALS_FILE)).decode()
    rows = sorted(csv.DictReader(io.StringIO(text)), key=lambda row: int(row["trial"]))
    return sweep, [_to_trial(sweep, row, folder) for row in rows]


def _to_trial(sweep: Sweep, row: Mapping[str, Any], folder: str) -> TrialResult:
    number, name = int(row["trial"]), folder.rstrip("/").rpartition("/")[2]
    saved = load_metrics(storage.join(folder, trial_name(name, number)))
    history = {step: each[sweep.metric] for step, each in saved.items() if sweep.metric in each}
    if row[sweep.metric]:
        history[int(row["step"])] = float(row[sweep.metric])
    kernel = kernel_field(sweep.recipe)
    return TrialResult(
        number=number,
        values={f: int(row[f]) if f == kernel else float(row[f]) for f in sweep.fields},
        state=row["state"],
        history=history,
        run_id=row["run_id"],
        reason=row["reason"],
    )


def build_page(sweep: Sweep, trials: Sequence[TrialResult], *, folder: str) -> Page:
    """Build the report of a sweep."""
    recipe = sweep.recipe
    return Page(
        title=f"Sweep {recipe.name}",
        subtitle=f"{len(trials)} trials of {recipe.optim.steps} steps, the best {sweep.metric} "
        f"wins; results in {folder}",
        sections=[
            _build_winner(sweep, trials, folder),
            _build_kernel_sizes(sweep, trials),
            _build_search(sweep, trials),
            _build_trials(sweep, trials),
            _build_recipe(sweep),
        ],
    )


def _build_winner(sweep: Sweep, trials: Sequence[TrialResult], folder: str) -> Section:
    best = find_winner(trials)
    if best is None:
        return Section(title="Winner", gaps=["No trial finished; the reasons are under Trials."])
    own = leaves(to_plain(sweep.recipe))
    rows = [["searched", "the recipe", "the winner"]]
    rows += [[f, _format(own[f]), _format(best.values[f])] for f in sweep.fields]
    return Section(
        title="Winner",
        text=f"Trial {best.number}, whose own report is in "
        f"{folder}/{trial_name(sweep.recipe.name, best.number)}. To train it: bsm train "
        f"{folder}/winner.json",
        cards=[(sweep.metric, f"{best.value:.4f}"), ("trial", str(best.number))],
        tables=[Table(rows=rows)],
    )


def _build_kernel_sizes(sweep: Sweep, trials: Sequence[TrialResult]) -> Section:
    curve, step = build_kernel_curve(sweep, trials), find_common_step(trials)
    with draw(f"{sweep.metric} by kernel size after the last step", height_in=3.4) as (
        figure,
        charts,
    ):
        plot.plot_final(figure.subplots(), sweep, curve)
    with draw(f"{sweep.metric} by kernel size at step {step}", height_in=3.4) as (figure, more):
        plot.plot_early(figure.subplots(), sweep, curve, step=step)
    return Section(
        title="Kernel size",
        text="Fig. 6 of the paper: the metric by the kernel size of the targets. Trials that were "
        "stopped early are only in the second chart.",
        charts=[*charts, *more],
    )


def _build_search(sweep: Sweep, trials: Sequence[TrialResult]) -> Section:
    # It reports each study that it keeps in memory.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    importance = estimate_importance(sweep, trials)
    charts = _plot_parallel(sweep, trials, step=importance.step)
    gaps = []
    if importance.shares:
        charts += _plot_importance(importance)
    else:
        gaps.append(
            f"The importance cannot be estimated: {importance.trials} trials with different "
            f"results at step {importance.step} are too few for {len(sweep.fields)} values."
        )
    if not charts:
        gaps.append("No trial was evaluated.")
    return Section(
        title="Searched values",
        text=f"A line for each trial, colored by {sweep.metric} at step {importance.step}, the "
        "last one that all trials reached: bright is better. Importance is the share of the "
        "variance between trials that a value explains (fANOVA).",
        charts=charts,
        gaps=gaps,
    )


def _plot_importance(importance: Importance) -> list[Chart]:
    with draw("Importance of the searched values") as (figure, charts):
        plot.plot_importance(figure.subplots(), importance)
    return charts


def _plot_parallel(sweep: Sweep, trials: Sequence[TrialResult], *, step: int) -> list[Chart]:
    """Plot parallel coordinates: an axis for each searched value and one for the metric."""
    shown = sorted(
        (each for each in trials if math.isfinite(each.history.get(step, math.nan))),
        key=lambda each: each.history[step],
    )
    if not shown:
        return []
    metric = np.array([each.history[step] for each in shown])
    logs = [np.log([float(each.values[f]) for each in shown]) for f in sweep.fields]
    places = np.stack([_to_unit(column) for column in (*logs, metric)], axis=1)
    # The ends of viridis are hard to see on one of the two backgrounds.
    colors = mpl.colormaps["viridis"](0.15 + 0.75 * places[:, -1])
    labels = [*map(short_name, sweep.fields), sweep.metric]
    ends = [[_format(float(np.exp(end(each)))) for end in (np.min, np.max)] for each in logs]
    ends.append([f"{metric.min():.3f}", f"{metric.max():.3f}"])
    width_in = max(4.6, 0.75 * len(labels))
    with draw("Parallel coordinates of all trials", width_in=width_in, height_in=3.2) as (
        figure,
        charts,
    ):
        axes = figure.subplots()
        for line, color in zip(places, colors, strict=True):
            axes.plot(line, color=color, linewidth=1.3)
        for place, (low, high) in enumerate(ends):
            axes.axvline(place, color=mpl.rcParams["axes.edgecolor"], linewidth=0.8, alpha=0.6)
            axes.text(place, -0.04, low, ha="center", va="top", fontsize=7)
            axes.text(place, 1.04, high, ha="center", va="bottom", fontsize=7)
        axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0, pad=12)
        axes.set_yticks([])
        axes.set_ylim(-0.06, 1.06)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    return charts


def _to_unit(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, Any]:
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread else np.full(len(values), 0.5)


def _build_trials(sweep: Sweep, trials: Sequence[TrialResult]) -> Section:
    rows = list(csv.reader(io.StringIO(format_trials_csv(sweep, trials))))
    columns = [n for n, name in enumerate(rows[0]) if name not in ("run_id", "reason")]
    table = [[_shorten(row[n]) for n in columns] for row in rows]
    failed = [["trial", "reason"]]
    failed += [[str(each.number), each.reason] for each in trials if each.reason]
    tables = [Table(rows=table)]
    if len(failed) > 1:
        tables.append(Table(rows=failed, is_numeric=False))
    return Section(
        title="Trials",
        text="The best first; trials that were stopped early after those that finished.",
        tables=tables,
    )


def _build_recipe(sweep: Sweep) -> Section:
    ranges = [[each.field, f"{each.low:g} to {each.high:g}"] for each in sweep.ranges]
    sizes = ", ".join(map(str, sweep.kernel_sizes))
    space = [["searched", "values"], [kernel_field(sweep.recipe), sizes], *ranges]
    values = [[name, json.dumps(value)] for name, value in leaves(to_plain(sweep.recipe)).items()]
    folded = "The recipe that all trials share"
    return Section(
        title="Recipe",
        tables=[
            Table(rows=space, is_numeric=False),
            Table(rows=[["field", "value"], *values], is_numeric=False, folded=folded),
        ],
    )


def _format(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _shorten(cell: str) -> str:
    """Round a number with many digits; keep a field's last word."""
    try:
        return cell if cell.isdecimal() else f"{float(cell):.4g}"
    except ValueError:
        return short_name(cell)
