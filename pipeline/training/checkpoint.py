"""Everything that a resume needs, in one folder: `<run>/checkpoints/step-00001000/`.

`checkpoint.pt` holds tensors and plain values only and is read with weights_only=True, so loading
it runs nothing. `checkpoint.json` is written after it and says what it is and how large: a
checkpoint without it, or of another size, was cut off by a crash and does not count. The layout is
the same for every worker count, so a run that started with two workers goes on with none.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline import storage
from pipeline.errors import RecipeError, TrainingError
from pipeline.recipe import Recipe, differences, fingerprint, from_dict, to_json
from pipeline.training.optim import FiniteOptimizer

FORMAT = 1

_FREE = (
    "scale.",
    "storage",
    "tracking.",
    "evaluation.",
    "checkpoint.",
    # The data's own fingerprint is compared instead of its place.
    "data.root",
    "data.train_split",
    "data.val_split",
    "data.test_short_edge_px",
    "data.decode_in",
    "data.prefetch_batches",
)
"""Fields that change nothing about which weights a run ends with; they may differ in a resume."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a checkpoint belongs to."""

    recipe: Recipe
    categories: tuple[tuple[int, int, str], ...]
    """(category_id, category_index, name) of each category."""
    data_fingerprint: str


@dataclass(frozen=True, slots=True)
class Place:
    """A complete checkpoint in storage."""

    uri: str
    step: int
    """Steps done, so also the next step to train."""


def checkpoints_uri(run_uri: str) -> str:
    """Name the folder of a run's checkpoints."""
    return storage.join(run_uri, "checkpoints")


def find_all(run_uri: str) -> list[Place]:
    """List the complete checkpoints of a run, oldest first."""
    marks = storage.list_files(checkpoints_uri(run_uri), suffix="/checkpoint.json", recursive=True)
    places = [Place(mark.rsplit("/", 1)[0], _step_of(mark)) for mark in marks if _is_complete(mark)]
    return sorted(places, key=lambda place: place.step)


def find_latest(run_uri: str) -> Place | None:
    """Give the newest complete checkpoint of a run, if it has one."""
    return next(reversed(find_all(run_uri)), None)


def save(
    run_uri: str,
    *,
    model: nn.Module,
    optimizer: FiniteOptimizer,
    step: int,
    epoch: int,
    identity: Identity,
) -> Place:
    """Write a checkpoint after `step` steps; a reader sees all of it or none."""
    about = {
        "format": FORMAT,
        "step": step,
        "epoch": epoch,
        "recipe": json.loads(to_json(identity.recipe)),
        "recipe_fingerprint": fingerprint(identity.recipe),
        "categories": [list(category) for category in identity.categories],
        "data_fingerprint": identity.data_fingerprint,
    }
    buffer = io.BytesIO()
    torch.save(
        {
            **about,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": _rng_state(),
        },
        buffer,
    )
    data = buffer.getvalue()
    place = Place(storage.join(checkpoints_uri(run_uri), f"step-{step:08d}"), step)
    storage.write_bytes_atomic(storage.join(place.uri, "checkpoint.pt"), data)
    mark = json.dumps({**about, "bytes": len(data)}, indent=1)
    storage.write_bytes_atomic(storage.join(place.uri, "checkpoint.json"), mark.encode())
    return place


def load(place: Place) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        TrainingError: it is damaged or of another format.
    """
    data = storage.read_bytes(storage.join(place.uri, "checkpoint.pt"))
    try:
        content: dict[str, Any] = torch.load(
            io.BytesIO(data), map_location="cpu", weights_only=True
        )
    except Exception as error:
        raise TrainingError(
            f"{place.uri}: checkpoint.pt cannot be read ({type(error).__name__}). "
            "Delete this folder to go on from the checkpoint before it."
        ) from error
    if content.get("format") != FORMAT:
        raise TrainingError(
            f"{place.uri}: checkpoint format {content.get('format')}, this version reads {FORMAT}. "
            "Train under another --name, or resume with the version that wrote it."
        )
    return content


def restore(content: dict[str, Any], *, model: nn.Module, optimizer: FiniteOptimizer) -> None:
    """Put a checkpoint's weights, momentum and random state back."""
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"]["torch"])
    if torch.cuda.is_available() and content["rng"]["cuda"] is not None:
        torch.cuda.set_rng_state(content["rng"]["cuda"])


def require_same(place: Place, *, identity: Identity) -> None:
    """Refuse to go on with a run as something else.

    Raises:
        RecipeError: the recipe, the data or the categories are not those of the checkpoint.
    """
    content = json.loads(storage.read_bytes(storage.join(place.uri, "checkpoint.json")))
    before = from_dict(content["recipe"])
    changed = [
        line
        for line in differences(before, identity.recipe)
        if not line.startswith((*_FREE, "name:"))
    ]
    if content["data_fingerprint"] != identity.data_fingerprint:
        changed.append(f"data: {content['data_fingerprint']} -> {identity.data_fingerprint}")
    if [tuple(category) for category in content["categories"]] != list(identity.categories):
        changed.append("categories: " + _names(content["categories"], identity.categories))
    if changed:
        name = identity.recipe.name
        listed = "\n".join(f"  {line}" for line in changed)
        raise RecipeError(
            f"run {name} in {identity.recipe.storage} is at step {place.step} with another recipe:"
            f"\n{listed}\n"
            "A run goes on only as it began. Give the values on the left to resume it, or start a "
            f"new run with: --name {name}-2"
        )


def prune(run_uri: str, *, keep: int) -> None:
    """Delete all but the newest checkpoints, and what a crash left half written before them."""
    kept = {place.uri for place in find_all(run_uri)[-keep:]}
    files = storage.list_files(checkpoints_uri(run_uri), recursive=True)
    folders = {file.rsplit("/", 1)[0] for file in files}
    newest = max(kept, default="")
    for folder in sorted(folders - kept):
        if folder < newest:
            # The mark goes first, so that a crash in between leaves no complete looking half.
            storage.remove(storage.join(folder, "checkpoint.json"))
            storage.remove(folder)


def _rng_state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _step_of(mark: str) -> int:
    return int(mark.rsplit("/", 2)[-2].removeprefix("step-"))


def _is_complete(mark: str) -> bool:
    size = storage.file_size(storage.join(mark.rsplit("/", 1)[0], "checkpoint.pt"))
    return size is not None and size == json.loads(storage.read_bytes(mark))["bytes"]


def _names(before: Sequence[Sequence[Any]], after: Sequence[Sequence[Any]]) -> str:
    return f"{[row[-1] for row in before]} -> {[row[-1] for row in after]}"
