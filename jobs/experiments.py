#!/usr/bin/env python
"""List all experiments with the paper's numbers, or write the list to jobs/README.md.

python jobs/experiments.py

python jobs/experiments.py --write-readme
"""

from pathlib import Path
from types import ModuleType
from typing import Any

from jobs import (
    ablation_coco_r50,
    bdd_r50,
    cityscapes_r50,
    cityscapes_r101,
    cityscapes_semantic_r50,
    cityscapes_semantic_r101,
    coco_cascade_r50,
    coco_cascade_r101_3x,
    coco_r50,
    coco_r50_3x,
    coco_r50_800px,
    coco_r101,
    coco_r101_3x,
    coco_x101,
    coco_x101_3x,
    lvis_star,
)
from pipeline.cli import run_verb
from pipeline.rows import NOT_RUN, Row, format_rows

# In the order of the paper's tables.
JOBS: tuple[ModuleType, ...] = (
    coco_r50,
    ablation_coco_r50,
    coco_r101,
    coco_x101,
    coco_r50_800px,
    coco_r50_3x,
    coco_r101_3x,
    coco_x101_3x,
    coco_cascade_r50,
    coco_cascade_r101_3x,
    cityscapes_r50,
    cityscapes_r101,
    lvis_star,
    cityscapes_semantic_r50,
    cityscapes_semantic_r101,
    bdd_r50,
)

README = Path(__file__).with_name("README.md")

_INTRODUCTION = f"""\
# Experiments

One file for each data set, backbone and schedule; the heads are its rows. The first row is the
default, and the first argument names another one:

```
python jobs/coco_r101.py --data.root ~/shards/coco          # the boundary squeeze
python jobs/coco_r101.py plain --data.root ~/shards/coco    # its control, Mask R-CNN
python jobs/coco_r101.py --list                             # all rows with the paper's numbers
python jobs/coco_r101.py plain --print-recipe               # the recipe that would run
ray job submit --working-dir . -- python jobs/coco_r101.py --data.root s3://data/coco
```

At its end a run prints its numbers next to the paper's. The comments of the files say where the
hyper-parameters come from. {NOT_RUN}

`python jobs/experiments.py --write-readme` generates this page from the files.

Earlier versions had a file for each row: `coco_r50_bmask.py` is now `coco_r50.py bmask`, and so on.
Names of runs and of registered models are the same. Rows of the paper take other mask targets now
([docs/train.md](../docs/train.md)), so an earlier run resumes with its own recipe:
`python jobs/train.py runs/NAME/recipe.json`.

A trained model on data of your own: [finetune.py](finetune.py)
([docs/finetune.md](../docs/finetune.md)).

Fig. 6 as a search over kernel size, loss weights and learning rate:
[sweep_coco_r50.py](sweep_coco_r50.py).
"""


def experiments(*, write_readme: bool = False) -> dict[str, Any]:
    """List all experiments with the paper's numbers.

    Args:
        write_readme: write the list to jobs/README.md.
    """
    if write_readme:
        README.write_text(format_readme())
        print(f"wrote {README}")
    else:
        for job in JOBS:
            print("\n".join([f"jobs/{_file(job)}", *format_rows(job.ROWS), ""]))
        print(NOT_RUN)
    return {"rows": sum(len(job.ROWS) for job in JOBS)}


def format_readme() -> str:
    """Format all experiments as the page jobs/README.md."""
    return "\n".join([_INTRODUCTION, *map(_format_section, JOBS)])


def _format_section(job: ModuleType) -> str:
    rows: dict[str, Row] = job.ROWS
    return "\n".join(
        [
            f"## [{_file(job)}]({_file(job)})",
            "",
            (job.__doc__ or "").partition("\n")[0],
            "",
            "| row | model | the paper reports |",
            "|---|---|---|",
            *(f"| `{name}` | {row.model} | {row.format_papers()} |" for name, row in rows.items()),
            "",
        ]
    )


def _file(job: ModuleType) -> str:
    return f"{job.__name__.rpartition('.')[2]}.py"


if __name__ == "__main__":
    run_verb(experiments)
