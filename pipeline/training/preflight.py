"""Everything that can be wrong with a run and can be known before it starts.

Cheap things first, and what is wrong with the data and the recipe together in one error, so that a
user does not find them one launch at a time.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bsm.config import build_model
from pipeline import storage
from pipeline.data.audit import audit_shards, told
from pipeline.data.manifest import Category, Manifest, read_manifest
from pipeline.errors import DatasetError, PipelineError, RecipeError
from pipeline.recipe import Recipe, to_json
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Identity, Place
from pipeline.training.loop import start_of
from pipeline.training.start_weights import Start, absolute_weights, started_from, starting

_log = logging.getLogger(__name__)

_MOST_NAMES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """A run that may start."""

    recipe: Recipe
    """With paths that hold in every working directory."""
    identity: Identity
    run_uri: str
    train_uri: str
    val_uri: str
    categories: tuple[Category, ...]
    train_images: int
    val_fingerprint: str
    verdict: str
    """What the audit found."""
    place: Place | None
    """The checkpoint to go on from."""
    model: nn.Module
    """On the CPU, as training starts."""
    started_from: str
    """The registered version whose weights it started from; "" for none."""


def check(recipe: Recipe) -> Checked:
    """Look at data, recipe, earlier checkpoints and storage before anything expensive starts.

    Raises:
        PipelineError: what is wrong, all of it, and what to type next.
    """
    resolved = absolute_paths(recipe)
    train_uri = storage.join(resolved.data.root, resolved.data.train_split)
    val_uri = storage.join(resolved.data.root, resolved.data.val_split)
    manifests, verdict = _check_data(resolved, [train_uri, val_uri])
    train = manifests[0]
    identity = Identity(
        recipe=recipe,
        categories=tuple((c.category_id, c.category_index, c.name) for c in train.categories),
        data_fingerprint=train.fingerprint,
    )
    run_uri = storage.join(resolved.storage, resolved.name)
    place = checkpoint.find_latest(run_uri)
    if place is not None:
        checkpoint.require_same(place, identity=identity)
    with starting(start_of(resolved.model, place=place), resolved, run_uri=run_uri) as start:
        try:
            model = build_model(start.here)
        except ValueError as error:
            raise RecipeError(f"model: {start.named(str(error))}") from error
        _warn_of_other_categories(start, train)
        # Also the first write to the storage: better now than at the first checkpoint.
        storage.write_bytes_atomic(storage.join(run_uri, "recipe.json"), to_json(recipe).encode())
        start.keep()
    if start.version:
        resolved = replace(resolved, model=start.model)
    return Checked(
        recipe=resolved,
        identity=identity,
        run_uri=run_uri,
        train_uri=train_uri,
        val_uri=val_uri,
        categories=train.categories,
        train_images=train.images,
        val_fingerprint=manifests[1].fingerprint,
        verdict=verdict,
        place=place,
        model=model,
        started_from=started_from(run_uri),
    )


def absolute_paths(recipe: Recipe) -> Recipe:
    """Make paths hold on workers, which have working directories of their own."""
    model = recipe.model
    # Each kind of model has a kind of trunk of its own, and gets the same one back.
    backbone: Any = replace(model.backbone, weights=absolute_weights(model.backbone.weights))
    return replace(
        recipe,
        storage=storage.absolute(recipe.storage),
        data=replace(recipe.data, root=storage.absolute(recipe.data.root)),
        model=replace(model, backbone=backbone, weights=absolute_weights(model.weights)),
    )


def _warn_of_other_categories(start: Start, train: Manifest) -> None:
    """Heads of as many other categories fit without an error."""
    names = [category.name for category in start.categories]
    ours = [category.name for category in train.categories]
    if names and len(names) == len(ours) and names != ours:
        _log.warning(
            "%s knows other categories (%s) than the data (%s), and its heads start from them. "
            "Parts that should start at random are named with --model.weights-leave-out",
            start.version,
            _few(names),
            _few(ours),
        )


def _check_data(recipe: Recipe, split_uris: list[str]) -> tuple[list[Manifest], str]:
    problems = [*_task_problems(recipe), *_device_problems(recipe)]
    manifests: list[Manifest] = []
    for uri in split_uris:
        try:
            manifests.append(read_manifest(uri))
        except PipelineError as error:
            problems.append(str(error))
    if len(manifests) == len(split_uris):
        problems += _category_problems(recipe, manifests, split_uris)
    if problems:
        raise RecipeError("\n".join(problems))
    broken = [(uri, found) for uri in split_uris if (found := audit_shards(uri))]
    if broken:
        raise DatasetError("\n".join(told(uri, found) for uri, found in broken))
    return manifests, _verdict(manifests[0])


def _verdict(train: Manifest) -> str:
    rejects = ", ".join(f"{count} {kind}" for kind, count in train.rejects.items())
    fixed = ", ".join(f"{count} {kind}" for kind, count in train.fixed.items())
    left_out = f"left out at ingest: {rejects or 'nothing'}"
    return f"sound; {left_out}" + (f"; fixed: {fixed}" if fixed else "")


def _category_problems(recipe: Recipe, manifests: list[Manifest], uris: list[str]) -> list[str]:
    problems = []
    train, val = manifests
    count = len(train.categories)
    if train.task != recipe.model.task:
        problems.append(
            f"{uris[0]} holds {train.task} shards; this recipe trains {recipe.model.task} models"
        )
    if count != recipe.model.num_classes:
        problems.append(
            f"model.num_classes is {recipe.model.num_classes}, {uris[0]} has {count} categories "
            f"({_shown(train)}). Type: --model.num-classes {count}"
        )
    if train.categories != val.categories:
        problems.append(
            f"{uris[1]} has other categories ({_shown(val)}) than {uris[0]} ({_shown(train)}). "
            "Ingest both from annotation files with the same categories"
        )
    return problems


def _task_problems(recipe: Recipe) -> list[str]:
    if recipe.model.task == "instance":
        return []
    return [
        f"model.task is {recipe.model.task}, and batches are made for instance models alone. Take "
        "the model from bsm: build_model(recipe.model) trains in any loop"
    ]


def _device_problems(recipe: Recipe) -> list[str]:
    scale, problems = recipe.scale, []
    if scale.use_gpu and scale.num_workers == 0 and not torch.cuda.is_available():
        problems.append(
            "scale.use_gpu is true, and torch sees no GPU here. Type: --scale.no-use-gpu"
        )
    if recipe.model.backbone.norm == "sync" and scale.num_workers > 1 and not scale.use_gpu:
        problems.append(
            "model.backbone.norm is sync, which needs GPUs. Type: --model.backbone.norm group"
        )
    return problems


def _shown(manifest: Manifest) -> str:
    return _few([category.name for category in manifest.categories])


def _few(names: list[str]) -> str:
    more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
