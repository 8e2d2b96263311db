"""The sections that every run has: result, training, data, recipe and environment."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from pipeline import storage
from pipeline.data.audit import audit_shards
from pipeline.data.learnable import describe_gaps
from pipeline.data.manifest import Manifest
from pipeline.errors import PipelineError
from pipeline.evaluation.checkpoint_metrics import describe_choice
from pipeline.recipe import Recipe, differences, fingerprint
from pipeline.recipe_json import leaves, to_plain
from pipeline.rows import METRIC_LABELS
from pipeline.run_report.charts import Chart, Points, plot_curves
from pipeline.run_report.page import Section, Table
from pipeline.run_report.run_folder import VALIDATION, RunFolder
from pipeline.text import format_names

_HEADLINES = ("mask_ap", "boundary_ap", "box_ap", "miou", "boundary_f_3px", "boundary_iou")

_AP = ("mask_ap", "boundary_ap", "box_ap")

_AP_COLUMNS = {
    "": "AP",
    "50": "AP50",
    "75": "AP75",
    "_small": "small",
    "_medium": "medium",
    "_large": "large",
}
"""Heading by end of the metric's name."""

_FREE = ("name", "storage", "tracking.", "scale.")
"""Fields that do not change a model."""


def build_result(run: RunFolder, other: RunFolder | None) -> Section:
    """Build the section with the most important numbers, beside another run's and the paper's."""
    if run.record is None:
        gap = f"There are no metrics: {run.gaps['record']}. They are written after the last step."
        return Section(title="Result", gaps=[gap])
    metrics = run.record.metrics
    recipe, split = run.recipe, run.recipe.data.val_split
    text = describe_choice(run.measured, recipe.checkpoint, steps=recipe.optim.steps)
    choice = [text] if text else []
    return Section(
        title="Result",
        text=" ".join([f"Evaluated on {split}: {run.record.evaluated_on}.", *choice]),
        cards=[(_name(key), _percent(metrics[key])) for key in _HEADLINES if key in metrics],
        gaps=[*_list_result_gaps(run, other)],
        tables=[Table(rows=_compare_numbers(run, other)), *_compare_recipes(run, other)],
    )


def _list_result_gaps(run: RunFolder, other: RunFolder | None) -> Iterator[str]:
    if other is not None and other.record is None:
        yield f"{other.name} has no metrics: {other.gaps['record']}."
    if other and other.record and run.record:
        ours, theirs = run.record.evaluated_on, other.record.evaluated_on
        if ours != theirs:
            yield f"The numbers of {other.name} are of other images or rules: {theirs}."
    if run.row is None:
        yield f"There is no number of the paper: {run.gaps['row']}."
    elif not run.row.papers:
        yield "The paper has no number for this recipe and data."


def _compare_recipes(run: RunFolder, other: RunFolder | None) -> list[Table]:
    """Table what differs in training from the row with the paper's numbers, and from a run."""
    before = {"the job's recipe": run.row.recipe} if run.row and run.row.papers else {}
    before |= {other.name: other.recipe} if other else {}
    tables = []
    for title, recipe in before.items():
        rows = list_differences(recipe, run.recipe) or [["nothing", "", ""]]
        header = [f"differs in training from {title}", title, run.name]
        tables.append(Table(rows=[header, *rows], is_numeric=False))
    return tables


def _compare_numbers(run: RunFolder, other: RunFolder | None) -> list[list[str]]:
    """Table the metrics: a row for each metric of each run and of the paper.

    AP has a column for each threshold and size; other metrics have a single number.
    """
    metrics = run.record.metrics if run.record else {}
    sources: dict[str, Mapping[str, float]] = {run.name: metrics}
    if other:
        theirs = other.record.metrics if other.record else {}
        sources[other.name] = theirs
        sources["difference"] = {k: v - theirs.get(k, math.nan) for k, v in metrics.items()}
    for paper in run.row.papers if run.row else ():
        numbers = {key: value / 100 for key, value in paper.numbers().items()}
        sources[f"paper (Table {paper.table}, {paper.split})"] = numbers
    names = [key for key in metrics if _is_compared(key)]
    is_ap = any(name in metrics for name in _AP)
    columns = _AP_COLUMNS if is_ap else {"": "value"}
    rows = [["[%]", *columns.values()]]
    for name in [each for each in _AP if each in metrics] if is_ap else names:
        for source, values in sources.items():
            cells = [_format_cell(values, name + end, source) for end in columns]
            if source == run.name or any(cell != "-" for cell in cells):
                whose = f", {source}" if len(sources) > 1 else ""
                rows.append([_name(name) + whose, *cells])
    return rows


def _format_cell(values: Mapping[str, float], key: str, source: str) -> str:
    value = values.get(key, math.nan)
    is_difference = source == "difference" and not math.isnan(value)
    return f"{100 * value:+.1f}" if is_difference else _percent(value)


def _is_compared(key: str) -> bool:
    return key.startswith(("miou", "boundary_f_", "mask_iou", "boundary_iou", "given_"))


def list_differences(before: Recipe, after: Recipe) -> list[list[str]]:
    """List the fields that differ and can change the model: name, before, after."""
    old, new = leaves(to_plain(before)), leaves(to_plain(after))
    return [
        [name, _to_text(old.get(name)), _to_text(new.get(name))]
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(_FREE) and name != "data.root"
    ]


def build_training(run: RunFolder, other: RunFolder | None) -> Section:
    """Build the section with the curves of one or two runs."""
    curves = run.history.curves
    if not curves:
        reason = run.gaps.get("history", "the run has logged none")
        return Section(title="Training", gaps=[f"There are no curves: {reason}."])
    gaps = []
    if other and not other.history.curves:
        reason = other.gaps.get("history", "the run has logged none")
        gaps.append(f"There are no curves of {other.name}: {reason}.")
    runs = {run.name: curves} | ({other.name: other.history.curves} if other else {})
    drawn = [
        _plot(runs, key, title=title, unit=unit)
        for key, title, unit in _list_curves(curves)
        if any(key in each for each in runs.values())
    ]
    scored = [key for key in _HEADLINES if len(curves.get(key, ())) > 1]
    if not scored:
        gaps.append(
            "The model was only evaluated after the last step; --evaluation.every-checkpoint also "
            "gives the curves of its metrics."
        )
    drawn += [_plot(runs, key, title=_name(key), unit="%") for key in scored]
    return Section(
        title="Training",
        text="Losses are means since the last logged step; validation losses are without "
        "augmentation. Data wait is the share of the time in which the workers waited for images.",
        gaps=gaps,
        charts=drawn,
    )


def _list_curves(curves: Mapping[str, Points]) -> list[tuple[str, str, str]]:
    """List name, title and unit of the curves in their order on the page."""
    losses = ["loss", *sorted(key for key in curves if key.startswith("loss_"))]
    return [
        *((key, key.removeprefix("loss_").replace("_", " "), "loss") for key in losses),
        ("lr", "learning rate", "learning rate"),
        ("images_per_s", "throughput", "images/s"),
        ("data_share", "data wait", "% of the time"),
        ("memory_gb", "peak memory", "GB"),
    ]


def _plot(runs: Mapping[str, Mapping[str, Points]], key: str, *, title: str, unit: str) -> Chart:
    scale = 100 if unit.startswith("%") else 1
    points: dict[str, Points] = {}
    for name, curves in runs.items():
        points[name] = [(step, scale * value) for step, value in curves.get(key, ())]
        if held_out := curves.get(VALIDATION + key):
            points[f"{name}, validation" if len(runs) > 1 else "validation"] = held_out
    if len(runs) == 1 and len(points) > 1:
        points = {"training" if name in runs else name: each for name, each in points.items()}
    title = "total loss" if key == "loss" else title
    return plot_curves(points, title=title, unit=unit, caption=f"{title} by step")


def build_data(run: RunFolder) -> Section:
    """Build the section with the audit of both splits."""
    data = run.recipe.data
    splits = {data.train_split: ("train", run.train), data.val_split: ("val", run.val)}
    gaps, known = [], {}
    for split, (name, manifest) in splits.items():
        if manifest is None:
            gaps.append(f"{split} cannot be read: {run.gaps[name]}")
            continue
        known[split] = manifest
        gaps += [f"{split}: {gap}." for gap in describe_gaps(manifest)]
    if not known:
        return Section(title="Data", gaps=gaps)
    uris = {split: storage.join(data.root, split) for split in known}
    rows = [["", *known], *list_facts(known), ["audit now", *map(_audit, uris.values())]]
    return Section(title="Data", gaps=gaps, tables=[Table(rows=rows, is_numeric=False)])


def list_facts(manifests: Mapping[str, Manifest]) -> list[list[str]]:
    """List the facts of splits: a row for each fact, with its name and a cell for each split."""
    facts: dict[str, list[str]] = {
        "images": [str(each.images) for each in manifests.values()],
        "annotations": [str(each.annotations) for each in manifests.values()],
        "categories": [
            f"{len(each.categories)}: {format_names([c.name for c in each.categories])}"
            for each in manifests.values()
        ],
        "dropped at ingest": [_format_counts(each.rejects) for each in manifests.values()],
        "repaired at ingest": [_format_counts(each.fixed) for each in manifests.values()],
        "notices at ingest": [_format_counts(each.notices) for each in manifests.values()],
        "source": [each.source for each in manifests.values()],
        "fingerprint": [each.fingerprint for each in manifests.values()],
    }
    return [[name, *cells] for name, cells in facts.items()]


def _audit(uri: str) -> str:
    try:
        problems = audit_shards(uri)
    except (PipelineError, OSError) as error:
        return f"not possible: {error}"
    return f"{len(problems)} problems: {'; '.join(problems[:3])}" if problems else "ok"


def build_recipe(run: RunFolder) -> Section:
    """Build the section with the recipe and what was changed in it."""
    gaps: list[str] = []
    tables = []
    if run.row is None:
        gaps.append(f"The recipe cannot be compared with its job's: {run.gaps['row']}.")
    else:
        changed = [line.partition(": ")[::2] for line in differences(run.row.recipe, run.recipe)]
        rows = [["changed on the command line", "job -> run"], *map(list, changed)]
        if changed:
            tables.append(Table(rows=rows, is_numeric=False))
        else:
            gaps.append("Nothing was changed in the job's recipe.")
    values = [[name, _to_text(value)] for name, value in leaves(to_plain(run.recipe)).items()]
    tables.append(
        Table(rows=[["field", "value"], *values], is_numeric=False, folded="The whole recipe")
    )
    model = f", {run.row.model}" if run.row and run.row.model else ""
    root = run.recipe.data.root
    where = "" if "://" in root or root.startswith("/") else f", in the folder that has {root}"
    return Section(
        title="Recipe",
        text=f"{run.recipe.name}{model}, fingerprint {fingerprint(run.recipe)}. The same training "
        f"again: bsm train {run.uri}/recipe.json --name NEW_NAME{where}",
        gaps=gaps,
        tables=tables,
    )


def build_environment(run: RunFolder) -> Section:
    """Build the section with the versions that the run was made with."""
    found = run.history.environment
    if not found:
        reason = run.gaps.get("history", "the run's tracking store has no versions")
        return Section(title="Environment", gaps=[f"Unknown: {reason}."])
    rows: Sequence[Sequence[str]] = [["", "version"], *([k, v] for k, v in found.items())]
    return Section(title="Environment", tables=[Table(rows=rows, is_numeric=False)])


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "nothing"


def _name(metric: str) -> str:
    if metric in METRIC_LABELS:
        return METRIC_LABELS[metric]
    words = metric.replace("_", " ").replace(" iou", " IoU")
    return words.replace(" ap", " AP").replace("miou", "mIoU").replace(" f ", " F ")


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _to_text(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
