"""Read what a run has written: its folder, its shards' manifests and its tracking store.

Whatever is missing is a sentence in `RunFolder.gaps`, for the report; only a folder without a
recipe is an error.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from pipeline import checksums, storage
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.errors import PipelineError, RecipeError
from pipeline.evaluation.checkpoint_metrics import MetricsByStep, load_metrics
from pipeline.recipe import Recipe, from_dict, from_json
from pipeline.recipe_json import to_plain
from pipeline.registry.provenance import EvaluationRecord
from pipeline.rows import Paper, Row
from pipeline.tracking.history import RunHistory, read_history
from pipeline.tracking.runs import read_run_id
from pipeline.tracking.stores import resolve_tracking_uri

JOB_FILE = "job.json"
RECIPE_FILE = "recipe.json"
METRICS_FILE = "metrics.json"

VALIDATION = "val_"
"""Of the names of losses on the validation split."""

_LOGGED = ("lr", "images_per_s", "data_share", "memory_gb")
_EVALUATED = ("mask_ap", "boundary_ap", "box_ap", "miou", "boundary_f_3px", "boundary_iou")

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Everything that a report shows of a run, besides its predictions."""

    uri: str
    recipe: Recipe
    row: Row | None = None
    """The row of the job that the run was started from, with the paper's numbers."""
    record: EvaluationRecord | None = None
    train: Manifest | None = None
    val: Manifest | None = None
    history: RunHistory = field(default_factory=RunHistory)
    measured: MetricsByStep = field(default_factory=dict)
    """Metrics of the checkpoints that were evaluated, by step."""
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Why something is missing, by its name: row, record, train, val, history, measured."""

    @property
    def val_uri(self) -> str:
        """Folder of the shards that the run was evaluated on."""
        return storage.join(self.recipe.data.root, self.recipe.data.val_split)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.uri.rpartition("/")[2]


def save_row(run_uri: str, row: Row) -> None:
    """Save the row of the job that a run was started from, with the paper's numbers.

    A run that is resumed from its recipe.json keeps its row.

    Raises:
        StorageError: the folder cannot be written.
    """
    uri = storage.join(run_uri, JOB_FILE)
    if not row.papers and storage.exists(uri):
        return
    content = {
        "model": row.model,
        "recipe": to_plain(row.recipe),
        "papers": [asdict(paper) for paper in row.papers],
    }
    checksums.write_file(uri, json.dumps(content, indent=1).encode())


def read_run(run_uri: str, *, tracking_uri: str = "") -> RunFolder:
    """Read a run.

    Args:
        run_uri: folder or URI, STORAGE/NAME of its recipe.
        tracking_uri: its MLflow store; "" is the recipe's, or else the one beside the folder.

    Raises:
        RecipeError: the folder is not that of a run, or its recipe is invalid.
        StorageError: its recipe cannot be read.
    """
    uri = storage.absolute(run_uri.rstrip("/"))
    if not storage.exists(storage.join(uri, RECIPE_FILE)):
        raise RecipeError(
            f"{run_uri} has no {RECIPE_FILE}, so it is not the folder of a run. Use the folder "
            "that the run's log names under results: STORAGE/NAME"
        )
    recipe_uri = storage.join(uri, RECIPE_FILE)
    try:
        recipe = from_json(checksums.read_file(recipe_uri))
    except RecipeError as error:
        raise RecipeError(f"{recipe_uri}: {error}") from error
    run = RunFolder(uri=uri, recipe=recipe)
    gaps: dict[str, str] = {}

    def read(name: str, reader: Callable[[], Value]) -> Value | None:
        try:
            return reader()
        except (PipelineError, OSError, ValueError, KeyError, TypeError) as error:
            gaps[name] = str(error)
            return None

    data = recipe.data
    found = {
        "row": read("row", lambda: _read_row(uri)),
        "record": read("record", lambda: EvaluationRecord.from_json(_read(uri, METRICS_FILE))),
        "train": read("train", lambda: read_manifest(storage.join(data.root, data.train_split))),
        "val": read("val", lambda: read_manifest(run.val_uri)),
    }
    history = read("history", lambda: _read_history(uri, recipe, tracking_uri))
    measured = read("measured", lambda: load_metrics(uri))
    known: dict[str, Any] = found | {
        "history": history or RunHistory(),
        "measured": measured or {},
    }
    return replace(run, **known, gaps=gaps)


def _read(run_uri: str, name: str) -> bytes:
    uri = storage.join(run_uri, name)
    if not storage.exists(uri):
        raise RecipeError(f"the run's folder has no {name}")
    return checksums.read_file(uri)


def _read_row(run_uri: str) -> Row:
    if not storage.exists(storage.join(run_uri, JOB_FILE)):
        raise RecipeError("the run was not started from a row of a job")
    content = json.loads(_read(run_uri, JOB_FILE))
    papers = tuple(Paper(**paper) for paper in content["papers"])
    return Row(from_dict(content["recipe"]), content["model"], papers)


def _read_history(run_uri: str, recipe: Recipe, tracking_uri: str) -> RunHistory:
    folder = run_uri.rpartition("/")[0]
    store = resolve_tracking_uri(tracking_uri or recipe.tracking.uri, storage_uri=folder)
    run_id = read_run_id(run_uri, store)
    if not run_id:
        raise RecipeError("the run was not tracked in this store")
    return read_history(store, run_id, wants=_is_shown)


def _is_shown(metric: str) -> bool:
    is_loss = metric == "loss" or metric.startswith(("loss_", VALIDATION))
    return is_loss or metric in (*_LOGGED, *_EVALUATED)
