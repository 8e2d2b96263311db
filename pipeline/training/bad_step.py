"""A step whose loss is not finite: keep what repeats it, and repeat it alone.

RUN/bad_batch.json names the images, and RUN/bad_batch.safetensors holds the weights at the stop.
On a CPU these are the weights before the step, as a bad update is skipped and the run stops at
once. On a GPU the numbers are read at the next log line, and the steps in between may have changed
the weights.
"""

import copy
import dataclasses
import json
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bsm.build import build_model
from bsm.checkpoints.weights import read_weights, save_weights
from bsm.configs.models import without_weights
from pipeline import storage
from pipeline.data.stream import StepBatch, local_batches
from pipeline.errors import TrainingError
from pipeline.recipe import Recipe, from_json, reads_masks
from pipeline.text import format_table
from pipeline.training.optim import build_optimizer
from pipeline.training.step import GRADIENT_NORM, BadStep, derive_seed, train_step

RECORD, WEIGHTS = "bad_batch.json", "bad_batch.safetensors"

_log = logging.getLogger(__name__)


def save_bad_step(run_uri: str, bad: BadStep, model: nn.Module, *, steps_done: int) -> None:
    """Save a bad step, with the weights that the model has now.

    Args:
        run_uri: the run's folder.
        bad: the step.
        model: of the run.
        steps_done: by the run; more than bad.step + 1 if it was noticed later.
    """
    record = {
        **dataclasses.asdict(bad),
        "image_ids": bad.image_ids,
        "later_steps": steps_done - bad.step - 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, WEIGHTS)
        save_weights(model, file)
        storage.write_bytes_atomic(storage.join(run_uri, WEIGHTS), file.read_bytes())
    storage.write_bytes_atomic(storage.join(run_uri, RECORD), _encode_json(record))


def replay(run: str) -> dict[str, Any]:
    """Repeat the bad step of a run alone, in this process, and say which images cause it.

    Args:
        run: folder or URI of the run.

    Returns:
        The step, whether all losses are the recorded ones, and the images whose losses alone are
        not finite.

    Raises:
        TrainingError: the run has no bad step.
    """
    uri = storage.join(run, RECORD)
    if not storage.exists(uri):
        raise TrainingError(
            f"{run} has no {RECORD}: no step of this run had a loss that is not finite"
        )
    record = json.loads(storage.read_bytes(uri))
    recipe = from_json(storage.read_bytes(storage.join(run, "recipe.json")).decode())
    if record["later_steps"]:
        text = "the weights are from %d steps later, so the losses may differ"
        _log.warning(text, record["later_steps"])
    model = _load_model(run, recipe)
    rows = [("worker", "loss", "recorded", "again")]
    is_same, bad_images = True, []
    for worker in record["workers"]:
        item = _read_batch(recipe, record["step"], worker["rank"], of=len(record["workers"]))
        again = _compute_losses(model, recipe, item, rank=worker["rank"])
        for name, value in again.items():
            recorded = float(worker["losses"][name])
            is_same &= value == recorded or (math.isnan(value) and math.isnan(recorded))
            rows.append((str(worker["rank"]), name, f"{recorded:.6g}", f"{value:.6g}"))
        for batch in item.microbatches:
            alone = dataclasses.replace(item, microbatches=(batch,))
            losses = _compute_losses(model, recipe, alone, rank=worker["rank"])
            if not all(map(math.isfinite, losses.values())):
                bad_images += batch.image_id.tolist()
    _log.info("%s", "\n".join(format_table(rows, align="<<>>")))
    _log.info("not finite alone: images %s", ", ".join(map(str, bad_images)) or "none")
    return {"step": record["step"], "is_same": is_same, "bad_images": bad_images}


def _load_model(run: str, recipe: Recipe) -> nn.Module:
    model = build_model(without_weights(recipe.model))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, WEIGHTS)
        file.write_bytes(storage.read_bytes(storage.join(run, WEIGHTS)))
        model.load_state_dict(read_weights(file))
    return model.train()


def _read_batch(recipe: Recipe, step: int, rank: int, *, of: int) -> StepBatch:
    """Read a worker's share of a step, in the same microbatches."""
    batches = local_batches(
        storage.join(recipe.data.root, recipe.data.train_split),
        recipe.data,
        seed=recipe.seed,
        global_batch=recipe.optim.global_batch,
        images_per_microbatch=recipe.scale.microbatch,
        first_step=step,
        stop_step=step + 1,
        with_masks=reads_masks(recipe.model),
        lanes=range(rank, recipe.optim.global_batch, of),
    )
    return next(iter(batches))


def _compute_losses(
    model: nn.Module, recipe: Recipe, item: StepBatch, *, rank: int
) -> dict[str, float]:
    """Train the step on a copy, with the random numbers of the run; return its losses."""
    torch.manual_seed(derive_seed(recipe.seed, item.step, rank))
    model = copy.deepcopy(model)
    output = train_step(
        model,
        build_optimizer(model, optim=recipe.optim),
        microbatches=item.microbatches,
        step=item.step,
        optim=recipe.optim,
        device=torch.device("cpu"),
    )
    losses = zip(output.names, output.values.tolist(), strict=True)
    return {name: value for name, value in losses if name != GRADIENT_NORM}


def _encode_json(record: dict[str, Any]) -> bytes:
    """Encode as JSON, with numbers that are not finite as text: JSON has no NaN."""

    def to_plain(value: Any) -> Any:  # noqa: ANN401  any JSON value
        match value:
            case dict():
                return {key: to_plain(item) for key, item in value.items()}
            case list() | tuple():
                return [to_plain(item) for item in value]
            case float() if not math.isfinite(value):
                return str(value)
        return value

    return json.dumps(to_plain(record), indent=1).encode()
