"""Everything that can be wrong with a run and can be known before it starts.

Cheap things first, and what is wrong with the data and the recipe together in one error, so that a
user does not find them one launch at a time.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bsm.build import build_model
from bsm.configs.semantic import DeepLabConfig
from pipeline import storage
from pipeline.data.audit import audit_shards, told
from pipeline.data.manifest import Category, Manifest, read_manifest
from pipeline.data.schema import Task
from pipeline.data.semantic_fields import REACH_PX
from pipeline.errors import DatasetError, PipelineError, RecipeError
from pipeline.evaluation.label_maps import WINDOWS_OF_RESIZED
from pipeline.recipe import DataConfig, EvaluationConfig, Recipe, to_json
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Identity, Place
from pipeline.training.loop import start_of
from pipeline.training.start_weights import Start, absolute_weights, started_from, starting

_log = logging.getLogger(__name__)

_MOST_NAMES = 8

_OF_TASK: dict[Task, dict[str, tuple[str, ...]]] = {
    "instance": {
        "data": ("short_edge_px", "test_short_edge_px", "long_edge_px"),
        "evaluation": ("paste_bytes", "boxes", "dilation_ratio", "submission"),
    },
    "semantic": {
        "data": ("scale_range", "crop_px", "test_size_hw"),
        "evaluation": ("window_px", "window_overlap", "radii_px", "absent"),
    },
}
"""Fields of a recipe that only one kind of model reads."""


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
    problems = [*_idle_fields(recipe), *_map_problems(recipe), *_device_problems(recipe)]
    manifests: list[Manifest] = []
    for uri in split_uris:
        try:
            manifest = read_manifest(uri)
        except PipelineError as error:
            problems.append(str(error))
            continue
        if manifest.task == recipe.model.task:
            manifests.append(manifest)
        else:
            problems.append(_other_task(recipe, manifest, uri))
    if len(manifests) == len(split_uris):
        problems += _category_problems(recipe, manifests, split_uris)
        problems += _submission_problems(recipe, manifests[1], split_uris[1])
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


def _submission_problems(recipe: Recipe, val: Manifest, uri: str) -> list[str]:
    if not recipe.evaluation.submission or val.is_cityscapes:
        return []
    return [
        f"evaluation.submission writes the official format of Cityscapes, and {uri} is made from "
        f"{val.source.partition(' ')[0] or 'something else'}. Type: --evaluation.no-submission"
    ]


def _other_task(recipe: Recipe, manifest: Manifest, uri: str) -> str:
    jobs = {"instance": "coco_r50.py", "semantic": "cityscapes_semantic_r50.py"}
    task = recipe.model.task
    return (
        f"{uri} holds {manifest.task} shards; this recipe trains {task} models. Name other shards "
        f"with --data.root, or train on these with another job: python jobs/{jobs[manifest.task]} "
        f"--data.root {recipe.data.root}"
    )


def _idle_fields(recipe: Recipe) -> list[str]:
    """Refuse values that would change nothing: whoever typed one expects that it does."""
    task = recipe.model.task
    other: Task = "semantic" if task == "instance" else "instance"
    return [
        f"{part}.{name} is read for {other} models, and this one is {task}: leave it out"
        for part, kind in (("data", DataConfig), ("evaluation", EvaluationConfig))
        for name in _OF_TASK[other][part]
        if getattr(getattr(recipe, part), name) != getattr(kind(), name)
    ]


def _map_problems(recipe: Recipe) -> list[str]:
    """List what cannot be done with label maps."""
    model, problems = recipe.model, []
    if not isinstance(model, DeepLabConfig):
        return []
    kernel, least = model.head.targets.kernel_size, recipe.data.scale_range[0]
    reach = (kernel - 1) // 2
    # Bands are read from a field that was measured to a distance.
    if model.head.kind == "squeeze" and reach > least * (REACH_PX - 0.5):
        problems.append(
            f"model.head.targets.kernel_size {kernel} reaches {reach} px, and shards know "
            f"{REACH_PX} px around a border, which are {least * REACH_PX:g} where an image is "
            f"resized by {least:g}. Take a smaller kernel, or a larger first value of "
            "--data.scale-range"
        )
    if recipe.evaluation.window_px is not None and recipe.data.test_size_hw is not None:
        problems.append(WINDOWS_OF_RESIZED)
    return problems


def _device_problems(recipe: Recipe) -> list[str]:
    scale, problems = recipe.scale, []
    if scale.use_gpu and scale.num_workers == 0 and not torch.cuda.is_available():
        problems.append(
            "scale.use_gpu is true, and torch sees no GPU here. Type: --scale.no-use-gpu"
        )
    # Of one worker too: torch refuses it wherever there is a process group.
    if recipe.model.backbone.norm == "sync" and scale.num_workers > 0 and not scale.use_gpu:
        problems.append(
            "model.backbone.norm is sync, which needs GPUs. Type: --model.backbone.norm group "
            "(pretrained weights: batch, with statistics of each worker's own images)"
        )
    return problems


def _shown(manifest: Manifest) -> str:
    return _few([category.name for category in manifest.categories])


def _few(names: list[str]) -> str:
    more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
