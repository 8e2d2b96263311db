"""The rows of a job: recipes by name, with the numbers that the BoundarySqueeze paper reports.

`--help` and `--list` of a job, jobs/README.md and the last lines of a run show these numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pipeline.recipe import Recipe, differences
from pipeline.text import format_table

NOT_RUN = "None of these rows has been run at full scale by us yet."

METRIC_LABELS = {
    "mask_ap": "mask AP",
    "mask_ap50": "mask AP50",
    "boundary_ap": "boundary AP",
    "cityscapes_ap": "Cityscapes AP",
    "cityscapes_ap50": "Cityscapes AP50",
    "miou": "mIoU",
    "boundary_f_12px": "boundary F(12px)",
    "boundary_f_9px": "boundary F(9px)",
    "boundary_f_5px": "boundary F(5px)",
    "boundary_f_3px": "boundary F(3px)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Paper:
    """Numbers of one table of the paper, in percent as printed; None if the table has none.

    They are named like the metrics of a run. Cityscapes' own AP is not a metric of a run;
    jobs/evaluate.py computes it from the run's submission.
    """

    table: str
    """Such as "1f"."""
    split: str
    mask_ap: float | None = None
    mask_ap50: float | None = None
    boundary_ap: float | None = None
    cityscapes_ap: float | None = None
    cityscapes_ap50: float | None = None
    miou: float | None = None
    boundary_f_12px: float | None = None
    boundary_f_9px: float | None = None
    boundary_f_5px: float | None = None
    boundary_f_3px: float | None = None

    def numbers(self) -> dict[str, float]:
        """Return the reported numbers by metric."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name in METRIC_LABELS}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        numbers = ", ".join(
            f"{METRIC_LABELS[name]} {value}" for name, value in self.numbers().items()
        )
        return f"{numbers} (Table {self.table}, {self.split})"


@dataclass(frozen=True, slots=True)
class Row:
    """One of the recipes of a job."""

    recipe: Recipe
    model: str = ""
    """Name of the model in the paper, or the change that the row makes."""
    papers: tuple[Paper, ...] = ()
    """One for each table that has the row."""

    def on_data_of(self, recipe: Recipe) -> "Row":
        """Leave the paper's numbers out if a run of the row was evaluated on other data."""
        ours, theirs = (
            (each.data.val_split, getattr(each.model, "num_classes", 0))
            for each in (recipe, self.recipe)
        )
        return self if ours == theirs else replace(self, papers=())

    def format_papers(self) -> str:
        """Format the paper's numbers; "-" if there are none."""
        return "; ".join(map(str, self.papers)) or "-"


def format_rows(rows: Mapping[str, Row]) -> list[str]:
    """Format the rows of a job as a table; the first row is the default."""
    default = next(iter(rows))
    cells = [
        (f"{name} (default)" if name == default else name, row.model, row.format_papers())
        for name, row in rows.items()
    ]
    return format_table([("row", "model", "the paper reports"), *cells])


def compare_with_paper(row: Row, recipe: Recipe, metrics: Mapping[str, Any]) -> list[str]:
    """Compare a run with the paper, one line for each number that both have on the same data.

    Args:
        row: the row of the job.
        recipe: the row's recipe with the overrides of the command line.
        metrics: the run's metrics by name, between 0 and 1; None or missing if not measured.
    """
    lines = [
        f"{METRIC_LABELS[name]} {100 * metrics[name]:.1f} on {recipe.data.val_split}, "
        f"the paper has {value} (Table {paper.table}, {paper.split})"
        for paper in row.on_data_of(recipe).papers
        for name, value in paper.numbers().items()
        if metrics.get(name) is not None
    ]
    changed = [line.partition(":")[0] for line in differences(row.recipe, recipe)]
    changed = [
        name
        for name in changed
        if name.startswith(("model.", "data.", "optim.", "evaluation.")) and name != "data.root"
    ]
    if lines and changed:
        lines.append(f"This run differs from the row: {', '.join(changed)} changed.")
    return lines
