"""The sections of a run that predicts instances: sizes, categories, objects, confusion, scores."""

import math

import numpy as np

from pipeline.errors import PipelineError
from pipeline.run_report.charts import plot_calibration, plot_categories, plot_groups, plot_matrix
from pipeline.run_report.matching import IOU, SCORE, Matches, match_detections
from pipeline.run_report.object_section import OBJECTS, UNREADABLE, build_objects
from pipeline.run_report.page import Section, Table
from pipeline.run_report.predictions import Predictions
from pipeline.run_report.run_folder import RunFolder
from pipeline.text import format_count

_SHOWN_CATEGORIES = 15
"""Best and worst categories in the chart, if there are more than twice as many."""

_MATRIX_SIDE = 30
"""Categories that fit into the matrix; of more, only the most frequent confusions are listed."""

_CONFUSIONS = 20

_MATCHED = (OBJECTS, "Confusion of categories", "Calibration of scores")
"""Titles of the sections that need the predictions."""

_METRICS = ("mask_ap", "boundary_ap", "box_ap")

_FEDERATED = (
    "The images of this data set were not checked for all categories, as in LVIS: a detection of "
    "an object that nobody annotated counts as wrong here, but not in AP."
)


def build_sections(run: RunFolder, other: RunFolder | None) -> list[Section]:
    """Build the sections of a run that predicts instances, with the scores of another one."""
    return [_build_sizes(run, other), *_build_matches(run)]


def _build_sizes(run: RunFolder, other: RunFolder | None) -> Section:
    title = "Size and category"
    if run.record is None:
        return Section(title=title, gaps=[run.gaps["record"]])
    metrics, scores = run.record.metrics, run.record.per_category
    sizes = {
        metric.replace("_ap", " AP"): {
            size: 100 * metrics.get(f"{metric}_{size}", math.nan)
            for size in ("small", "medium", "large")
        }
        for metric in _METRICS
    }
    by_category = {
        name: {_label(key): 100 * value for key, value in each.items()}
        for name, each in scores.items()
        if not math.isnan(each.get("mask_ap", math.nan))
    }
    names = sorted(by_category, key=lambda name: -by_category[name]["mask AP"])
    absent = [name for name in scores if name not in by_category]
    shown = names
    if len(names) > 2 * _SHOWN_CATEGORIES:
        shown = [*names[:_SHOWN_CATEGORIES], *names[-_SHOWN_CATEGORIES:]]
    listed = f"; the {_SHOWN_CATEGORIES} best and worst of {len(names)}" * (shown is not names)
    drawn = [plot_groups(sizes, unit="AP [%]", caption="AP by size of the objects")]
    if shown:
        drawn.append(
            plot_categories(
                {name: by_category[name] for name in shown},
                unit="AP [%]",
                caption="AP by category",
            )
        )
    return Section(
        title=title,
        text="Small objects are below 32 x 32 pixels, large ones from 96 x 96. Categories are in "
        f"the order of mask AP{listed}.",
        gaps=[f"Without objects in the evaluated images: {', '.join(absent)}."] if absent else [],
        charts=drawn,
        tables=[
            Table(
                rows=_list_categories(names, run, other),
                folded=f"All {len(names)} categories as numbers",
            )
        ],
    )


def _list_categories(names: list[str], run: RunFolder, other: RunFolder | None) -> list[list[str]]:
    """Table the scores by category; beside another run also its scores and the difference."""
    ours = run.record.per_category if run.record else {}
    theirs = other.record.per_category if other and other.record else {}
    header = ["category"]
    for metric in _METRICS:
        header += [_label(metric), *([other.name, "difference"] if other else [])]
    rows = [header]
    for name in names:
        row = [name]
        for metric in _METRICS:
            mine = 100 * ours[name].get(metric, math.nan)
            its = 100 * theirs.get(name, {}).get(metric, math.nan)
            row += [_format(mine), *([_format(its), _format_change(mine - its)] if other else [])]
        rows.append(row)
    return rows


def _build_matches(run: RunFolder) -> list[Section]:
    try:
        found = Predictions(run, file="detections.json")
        matches = match_detections(found.truth, found.rows, dilation_ratio=found.ratio)
        return [
            build_objects(found, matches.pairs, text=_describe_objects(found, matches)),
            _build_confusion(found, matches),
            _build_calibration(found, matches),
        ]
    except (PipelineError, OSError, ValueError, KeyError) as error:
        return [Section(title=title, gaps=[f"{UNREADABLE}: {error}"]) for title in _MATCHED]


def _describe_objects(predictions: Predictions, matches: Matches) -> str:
    found, objects = len(matches.pairs), len(matches.pairs) + matches.missed
    return (
        f"{found} of {format_count(objects, 'object')} {predictions.scope} were found: by a "
        f"detection of their category with a mask IoU of at least {IOU}."
    )


def _build_confusion(predictions: Predictions, matches: Matches) -> Section:
    counts = matches.confusion
    names = list(predictions.names.values())
    text = (
        f"Detections {predictions.scope} with a score of at least {SCORE}, matched with the truth "
        f"regardless of the category at a mask IoU of {IOU}."
    )
    pairs = [
        (int(count), names[row], names[column])
        for (row, column), count in np.ndenumerate(counts[:-1, :-1])
        if count and row != column
    ]
    pairs.sort(key=lambda each: -each[0])
    rows = [["true", "predicted", "objects"], *([a, b, str(n)] for n, a, b in pairs[:_CONFUSIONS])]
    gaps = [*_list_caveats(predictions)]
    gaps += [] if pairs else ["No object was found as another category."]
    found = counts[:-1, :-1]
    cards = [
        ("right category", str(int(np.trace(found)))),
        ("other category", str(int(found.sum() - np.trace(found)))),
        ("missed objects", str(int(counts[:-1, -1].sum()))),
        ("detections of nothing", str(int(counts[-1, :-1].sum()))),
    ]
    drawn = []
    if len(names) <= _MATRIX_SIDE:
        with np.errstate(invalid="ignore"):
            shares = counts / counts.sum(axis=1, keepdims=True)
        drawn = [
            plot_matrix(
                shares,
                rows=[*names, "no object"],
                columns=[*names, "missed"],
                caption="Confusion of categories",
            )
        ]
    tables = [Table(rows=rows, folded="The most frequent confusions")] if pairs else []
    return Section(
        title=_MATCHED[1], text=text, gaps=gaps, cards=cards, charts=drawn, tables=tables
    )


def _build_calibration(predictions: Predictions, matches: Matches) -> Section:
    scores, is_right = matches.scores, matches.is_right
    if not len(scores):
        gap = f"There are no detections {predictions.scope}."
        return Section(title=_MATCHED[2], gaps=[gap])
    bins = np.minimum((scores * 10).astype(int), 9)
    counts = np.bincount(bins, minlength=10)
    with np.errstate(invalid="ignore"):
        means = np.bincount(bins, scores, minlength=10) / counts
        rates = np.bincount(bins, is_right, minlength=10) / counts
    error = float(np.nansum(counts * np.abs(means - rates)) / counts.sum())
    return Section(
        title=_MATCHED[2],
        text=f"How often detections {predictions.scope} are right, by their score: a detection is "
        f"right if it matches an object of its category at a mask IoU of {IOU}. On the diagonal a "
        "score is the probability of being right.",
        gaps=_list_caveats(predictions),
        cards=[("expected calibration error", f"{error:.3f}"), ("detections", str(len(scores)))],
        charts=[plot_calibration(means, rates, counts)],
    )


def _list_caveats(predictions: Predictions) -> list[str]:
    return [_FEDERATED] if predictions.is_federated else []


def _label(metric: str) -> str:
    return metric.replace("_ap", " AP")


def _format(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _format_change(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.1f}"
