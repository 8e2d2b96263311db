"""Compare mask heads at an equal budget: train each with several seeds, evaluate, summarize.

Every run is an ordinary run of the pipeline with its own name, so a stopped study can be resumed,
and two processes can share one with different heads or seeds. The runs of a seed see the same
images in the same order, so heads are also compared seed by seed, which cancels the effect that a
seed has on all heads.
"""

import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import checksums
from pipeline.recipe import Recipe, fingerprint
from pipeline.text import format_markdown

_log = logging.getLogger(__name__)

_METRICS = ("mask_iou", "boundary_iou")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRun:
    """Metrics of one head trained with one seed."""

    head: str
    seed: int
    metrics: dict[str, float]
    """mask_iou and boundary_iou, their shares over thresholds and for large objects; 0..1."""
    train_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadSummary:
    """Metrics of one head over its seeds."""

    head: str
    seeds: int
    means: dict[str, float]
    spreads: dict[str, float]
    """Standard deviations over seeds; NaN for one seed."""
    over_reference: dict[str, tuple[float, float]]
    """Means and standard deviations of the difference to the reference, seed by seed."""


def train_heads(recipes: Mapping[str, Recipe], *, seeds: Sequence[int], out: str) -> list[HeadRun]:
    """Train and evaluate every head with every seed, skipping finished runs.

    Args:
        recipes: by head; seed, name and storage are set here.
        seeds: one run each.
        out: local folder for the runs and their results.
    """
    from pipeline.training import launch  # noqa: PLC0415  Ray and MLflow

    for seed in seeds:
        for head, recipe in recipes.items():
            run = _name_run(recipe, head, seed, out)
            path = Path(out) / run.name / "result.json"
            if path.exists() and json.loads(checksums.read_file(str(path)))[
                "recipe"
            ] == fingerprint(run):
                _log.info("%s: finished before", run.name)
                continue
            result = launch.run(run)
            record = {
                "head": head,
                "seed": seed,
                "recipe": fingerprint(run),
                "metrics": {
                    k: v for k, v in result.items() if k.startswith(_METRICS) and v is not None
                },
                "train_s": result["seconds_by_phase"]["train"],
            }
            checksums.write_file(str(path), json.dumps(record, indent=1).encode())
    return read_runs(recipes, out=out)


def read_runs(recipes: Mapping[str, Recipe], *, out: str) -> list[HeadRun]:
    """Read the results of all runs in a folder that match the given recipes."""
    runs = []
    for path in sorted(Path(out).glob("*/result.json")):
        record = _read_record(path)
        recipe, expected = recipes.get(record["head"]), record.pop("recipe")
        run = recipe and _name_run(recipe, record["head"], record["seed"], out)
        if run and fingerprint(run) == expected:
            runs.append(HeadRun(**record))
    return runs


def summarize(
    runs: Sequence[HeadRun], *, heads: Sequence[str], reference: str
) -> list[HeadSummary]:
    """Average the runs of each head, and its differences to the reference seed by seed.

    Args:
        runs: of all heads.
        heads: in the order of the result; a head without runs has no summary.
        reference: the head that the others are compared with.
    """
    by_head = {head: {run.seed: run for run in runs if run.head == head} for head in heads}
    others = by_head.get(reference, {})
    summaries = []
    for head, own in by_head.items():
        if not own:
            continue
        names = next(iter(own.values())).metrics
        common = sorted(own.keys() & others.keys())
        values = {name: [run.metrics[name] for run in own.values()] for name in names}
        gains = {
            name: [own[seed].metrics[name] - others[seed].metrics[name] for seed in common]
            for name in names
        }
        summaries.append(
            HeadSummary(
                head=head,
                seeds=len(own),
                means={name: statistics.mean(each) for name, each in values.items()},
                spreads={name: _deviation(each) for name, each in values.items()},
                over_reference={
                    name: (statistics.mean(each) if each else math.nan, _deviation(each))
                    for name, each in gains.items()
                },
            )
        )
    return summaries


def format_summaries(summaries: Sequence[HeadSummary], *, reference: str) -> str:
    """Format a Markdown table in percent: mean and standard deviation over seeds."""
    shares = {
        "mask_iou_over_50": "mask >= .5",
        "mask_iou_over_75": "mask >= .75",
        "boundary_iou_over_50": "boundary >= .5",
        "boundary_iou_over_75": "boundary >= .75",
    }
    header = ["head", "seeds", "mask IoU", "boundary IoU", f"boundary over {reference}"]
    rows = [[*header, *shares.values(), "large: mask", "large: boundary"]]
    for each in summaries:
        gain, spread = each.over_reference["boundary_iou"]
        rows.append(
            [
                each.head,
                str(each.seeds),
                *(_format_mean(each, name) for name in _METRICS),
                "" if each.head == reference else f"{100 * gain:+.2f}{_format_spread(spread, 2)}",
                *(f"{100 * each.means[name]:.1f}" for name in shares),
                *(_format_mean(each, f"{name}_large") for name in _METRICS),
            ]
        )
    return format_markdown(rows)


def draw_summaries(
    summaries: Sequence[HeadSummary], runs: Sequence[HeadRun], path: Path, *, title: str
) -> None:
    """Plot mask IoU and boundary IoU of every run, one line per head, and the means."""
    import matplotlib as mpl  # noqa: PLC0415  a second of imports

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(
        1, 2, figsize=(10, 1.2 + 0.42 * len(summaries)), sharey=True, layout="constrained"
    )
    for axis, name in zip(axes, _METRICS, strict=True):
        for line, each in enumerate(summaries):
            values = [100 * run.metrics[name] for run in runs if run.head == each.head]
            axis.plot(values, [line] * len(values), "o", color="#3b6fb6", alpha=0.55, ms=6)
            axis.plot([100 * each.means[name]], [line], "|", color="#c0392b", ms=18, mew=2.5)
        axis.set_xlabel(f"{name.replace('_iou', ' IoU')}, %")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(b=False)
    axes[0].set_yticks(range(len(summaries)), [each.head for each in summaries])
    axes[0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _read_record(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(checksums.read_file(str(path)))
    return record


def _name_run(recipe: Recipe, head: str, seed: int, out: str) -> Recipe:
    return replace(recipe, name=f"{head}-{seed}", seed=seed, storage=out)


def _format_mean(summary: HeadSummary, name: str) -> str:
    return f"{100 * summary.means[name]:.1f}{_format_spread(summary.spreads[name], 1)}"


def _format_spread(deviation: float, digits: int) -> str:
    """Format a standard deviation in percent; "" for NaN."""
    return "" if math.isnan(deviation) else f" +- {100 * deviation:.{digits}f}"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan
