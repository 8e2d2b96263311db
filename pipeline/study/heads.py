"""Mask heads compared at an equal budget: train each with several seeds, judge, table and plot.

Every run is an ordinary run of the pipeline under a name of its own, so a study that was stopped
goes on where it was, and two processes may share one by taking different heads or seeds. Runs of a
seed see the same images in the same order, so heads are also compared seed by seed: what a seed
brings to all heads alike falls out of the difference.
"""

import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe, fingerprint

_log = logging.getLogger(__name__)

_KEPT = ("mask_iou", "boundary_iou")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One head trained with one seed."""

    head: str
    seed: int
    metrics: dict[str, float]
    """mask_iou, boundary_iou, their shares over thresholds and for large objects; 0..1."""
    train_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One head over its seeds."""

    head: str
    seeds: int
    means: dict[str, float]
    spreads: dict[str, float]
    """Standard deviation over seeds; NaN for one seed."""
    over_reference: dict[str, tuple[float, float]]
    """Mean and standard deviation of the difference to the reference, seed by seed."""


def run_trials(recipes: Mapping[str, Recipe], *, seeds: Sequence[int], out: str) -> list[Trial]:
    """Train and judge every head with every seed, those that are done already left as they are.

    Args:
        recipes: by the head's name; seed, name and storage are set here.
        seeds: one run each.
        out: local folder for the runs and their results.
    """
    from pipeline.training import launch  # noqa: PLC0415  Ray and MLflow are not needed for a table

    for seed in seeds:
        for head, recipe in recipes.items():
            named = replace(recipe, name=f"{head}-{seed}", seed=seed, storage=out)
            place = _result_file(out, named.name)
            if place.exists() and json.loads(place.read_text())["recipe"] == fingerprint(named):
                _log.info("%s: done before", named.name)
                continue
            result = launch.run(named)
            kept = {k: v for k, v in result.items() if k.startswith(_KEPT) and v is not None}
            record = {
                "head": head,
                "seed": seed,
                "recipe": fingerprint(named),
                "metrics": kept,
                "train_s": result["seconds_by_phase"]["train"],
            }
            place.write_text(json.dumps(record, indent=1))
    return read_trials(recipes, out=out)


def read_trials(recipes: Mapping[str, Recipe], *, out: str) -> list[Trial]:
    """Read the results of all runs of a folder that belong to the given recipes."""
    trials = []
    for place in sorted(Path(out).glob("*/result.json")):
        found: dict[str, Any] = json.loads(place.read_text())
        recipe = recipes.get(found["head"])
        if recipe is None:
            continue
        named = replace(
            recipe,
            name=f"{found['head']}-{found['seed']}",
            seed=found["seed"],
            storage=out,
        )
        if fingerprint(named) == found["recipe"]:
            trials.append(
                Trial(
                    head=found["head"],
                    seed=found["seed"],
                    metrics=found["metrics"],
                    train_s=found["train_s"],
                )
            )
    return trials


def summarize(trials: Sequence[Trial], *, heads: Sequence[str], reference: str) -> list[Row]:
    """Average the trials of each head, and its differences to the reference seed by seed.

    Args:
        trials: of all heads.
        heads: in the order of the rows; a head without trials has no row.
        reference: the head that the others are compared with.
    """
    by_head = {head: {t.seed: t for t in trials if t.head == head} for head in heads}
    rows = []
    for head, own in by_head.items():
        if not own:
            continue
        names = next(iter(own.values())).metrics
        common = sorted(own.keys() & by_head.get(reference, {}).keys())
        values = {name: [trial.metrics[name] for trial in own.values()] for name in names}
        rows.append(
            Row(
                head=head,
                seeds=len(own),
                means={name: statistics.mean(found) for name, found in values.items()},
                spreads={name: _deviation(found) for name, found in values.items()},
                over_reference={
                    name: _mean_and_deviation(
                        [
                            own[seed].metrics[name] - by_head[reference][seed].metrics[name]
                            for seed in common
                        ]
                    )
                    for name in names
                },
            )
        )
    return rows


def format_rows(rows: Sequence[Row], *, reference: str) -> str:
    """Lay the rows out as a Markdown table, in percent: mean and spread over seeds."""
    heads = [
        "head",
        "seeds",
        "mask IoU",
        "boundary IoU",
        f"boundary over {reference}",
        "mask >= .5",
        "mask >= .75",
        "boundary >= .5",
        "boundary >= .75",
        "large: mask",
        "large: boundary",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        gain = row.over_reference["boundary_iou"]
        cells = [
            row.head,
            str(row.seeds),
            *(_with_spread(row, name) for name in _KEPT),
            "" if row.head == reference else f"{100 * gain[0]:+.2f}{_spread(gain[1], digits=2)}",
            *(
                f"{100 * row.means[name]:.1f}"
                for name in (
                    "mask_iou_over_50",
                    "mask_iou_over_75",
                    "boundary_iou_over_50",
                    "boundary_iou_over_75",
                )
            ),
            *(_with_spread(row, f"{name}_large") for name in _KEPT),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_rows(rows: Sequence[Row], trials: Sequence[Trial], place: Path, *, title: str) -> None:
    """Draw mask IoU and boundary IoU of every trial, one line a head, and the means."""
    import matplotlib as mpl  # noqa: PLC0415  a second of imports

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(
        1, 2, figsize=(10, 1.2 + 0.42 * len(rows)), sharey=True, layout="constrained"
    )
    for axis, name in zip(axes, _KEPT, strict=True):
        for line, row in enumerate(rows):
            found = [100 * t.metrics[name] for t in trials if t.head == row.head]
            axis.plot(found, [line] * len(found), "o", color="#3b6fb6", alpha=0.55, ms=6)
            axis.plot([100 * row.means[name]], [line], "|", color="#c0392b", ms=18, mew=2.5)
        axis.set_xlabel(f"{name.replace('_iou', ' IoU')}, %")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(b=False)
    axes[0].set_yticks(range(len(rows)), [row.head for row in rows])
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    figure.savefig(place, dpi=130)
    plt.close(figure)


def _result_file(out: str, name: str) -> Path:
    return Path(out) / name / "result.json"


def _with_spread(row: Row, name: str) -> str:
    return f"{100 * row.means[name]:.1f}{_spread(row.spreads[name], digits=1)}"


def _spread(deviation: float, *, digits: int) -> str:
    """Say it in percent; nothing where one seed has none."""
    return "" if math.isnan(deviation) else f" +- {100 * deviation:.{digits}f}"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return (statistics.mean(values), _deviation(values)) if values else (float("nan"),) * 2
