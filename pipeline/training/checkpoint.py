"""Checkpoints: everything that a resume needs, in `<run>/checkpoints/step-00001000/`.

`checkpoint.pt` holds only tensors and plain values and is loaded with weights_only=True, so loading
it executes no code. `checkpoint.json` is written after it and records its content and size: a
folder without `checkpoint.json`, or with a `checkpoint.pt` of another size, was cut off by a crash
and is ignored. The layout does not depend on the number of workers, so a run that started with two
workers can resume with none.
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
    # The data's fingerprint is compared instead of its path.
    "data.root",
    "data.train_split",
    "data.val_split",
    "data.test_short_edge_px",
    "data.decode_in",
    "data.prefetch_batches",
)
"""Fields that do not change the final weights; a resume may change them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The recipe, categories and data of a run; a resume must have the same."""

    recipe: Recipe
    categories: tuple[tuple[int, int, str], ...]
    """(category_id, category_index, name) of each category."""
    data_fingerprint: str


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A complete checkpoint in storage."""

    uri: str
    step: int
    """Steps done, and the next step to train."""


def checkpoints_uri(run_uri: str) -> str:
    """Return the folder of a run's checkpoints."""
    return storage.join(run_uri, "checkpoints")


def find_all(run_uri: str) -> list[CheckpointRef]:
    """List the complete checkpoints of a run, oldest first."""
    files = storage.list_files(checkpoints_uri(run_uri), suffix="/checkpoint.json", recursive=True)
    refs = [
        CheckpointRef(_parent(file), int(_parent(file).rpartition("/step-")[2]))
        for file in files
        if _is_complete(file)
    ]
    return sorted(refs, key=lambda ref: ref.step)


def find_latest(run_uri: str) -> CheckpointRef | None:
    """Return the newest complete checkpoint of a run, or None."""
    return next(reversed(find_all(run_uri)), None)


def save(
    run_uri: str,
    *,
    model: nn.Module,
    optimizer: FiniteOptimizer,
    step: int,
    epoch: int,
    identity: Identity,
) -> CheckpointRef:
    """Write the checkpoint after `step` steps atomically."""
    info = {
        "format": FORMAT,
        "step": step,
        "epoch": epoch,
        "recipe": json.loads(to_json(identity.recipe)),
        "recipe_fingerprint": fingerprint(identity.recipe),
        "categories": [list(category) for category in identity.categories],
        "data_fingerprint": identity.data_fingerprint,
    }
    cuda_rng = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    buffer = io.BytesIO()
    torch.save(
        {
            **info,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": {"torch": torch.get_rng_state(), "cuda": cuda_rng},
        },
        buffer,
    )
    data = buffer.getvalue()
    ref = CheckpointRef(storage.join(checkpoints_uri(run_uri), f"step-{step:08d}"), step)
    storage.write_bytes_atomic(storage.join(ref.uri, "checkpoint.pt"), data)
    text = json.dumps({**info, "bytes": len(data)}, indent=1)
    storage.write_bytes_atomic(storage.join(ref.uri, "checkpoint.json"), text.encode())
    return ref


def load_info(ref: CheckpointRef) -> dict[str, Any]:
    """Load a checkpoint's `checkpoint.json`."""
    info: dict[str, Any] = json.loads(storage.read_bytes(storage.join(ref.uri, "checkpoint.json")))
    return info


def load(ref: CheckpointRef) -> dict[str, Any]:
    """Load a checkpoint onto the CPU.

    Raises:
        TrainingError: it is damaged or has another format.
    """
    data = storage.read_bytes(storage.join(ref.uri, "checkpoint.pt"))
    try:
        content: dict[str, Any] = torch.load(
            io.BytesIO(data), map_location="cpu", weights_only=True
        )
    except Exception as error:
        raise TrainingError(
            f"{ref.uri}: checkpoint.pt cannot be read ({type(error).__name__}). "
            "Delete this folder to resume from the previous checkpoint."
        ) from error
    if content.get("format") != FORMAT:
        raise TrainingError(
            f"{ref.uri}: checkpoint format {content.get('format')}, this version reads {FORMAT}. "
            "Train under another --name, or resume with the version that wrote it."
        )
    return content


def restore(content: dict[str, Any], *, model: nn.Module, optimizer: FiniteOptimizer) -> None:
    """Restore the weights, the optimizer and the random state from a checkpoint."""
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"]["torch"])
    if torch.cuda.is_available() and content["rng"]["cuda"] is not None:
        torch.cuda.set_rng_state(content["rng"]["cuda"])


def require_same(ref: CheckpointRef, *, identity: Identity) -> None:
    """Refuse to resume a run with another recipe, other data or other categories.

    Raises:
        RecipeError: they differ from those of the checkpoint.
    """
    info = load_info(ref)
    changed = [
        line
        for line in differences(from_dict(info["recipe"]), identity.recipe)
        if not line.startswith((*_FREE, "name:"))
    ]
    if info["data_fingerprint"] != identity.data_fingerprint:
        changed.append(f"data: {info['data_fingerprint']} -> {identity.data_fingerprint}")
    if [tuple(category) for category in info["categories"]] != list(identity.categories):
        before, after = _names(info["categories"]), _names(identity.categories)
        changed.append(f"categories: {before} -> {after}")
    if changed:
        name = identity.recipe.name
        lines = "\n".join(f"  {line}" for line in changed)
        raise RecipeError(
            f"run {name} in {identity.recipe.storage} is at step {ref.step} with another recipe:"
            f"\n{lines}\n"
            "A run can only resume with the same recipe. Use the values on the left to resume it, "
            f"or start a new run with: --name {name}-2"
        )


def prune(run_uri: str, *, keep: int) -> None:
    """Delete all but the newest checkpoints, and older ones that a crash left incomplete."""
    kept = {ref.uri for ref in find_all(run_uri)[-keep:]}
    files = storage.list_files(checkpoints_uri(run_uri), recursive=True)
    newest = max(kept, default="")
    for folder in sorted({_parent(file) for file in files} - kept):
        if folder < newest:
            # checkpoint.json first: a crash in between must not leave half a checkpoint that
            # looks complete.
            storage.remove(storage.join(folder, "checkpoint.json"))
            storage.remove(folder)


def _is_complete(file: str) -> bool:
    size = storage.file_size(storage.join(_parent(file), "checkpoint.pt"))
    return size is not None and size == json.loads(storage.read_bytes(file))["bytes"]


def _parent(file: str) -> str:
    return file.rpartition("/")[0]


def _names(categories: Sequence[Sequence[Any]]) -> list[str]:
    return [row[-1] for row in categories]
