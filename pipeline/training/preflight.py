"""Check everything about a run that can be checked before it starts.

Cheap checks come first, and all problems of the data and the recipe come in one error, so that a
user does not find them one launch at a time.
"""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from bsm.activation_checkpointing import checkpoint_activations
from bsm.build import SkipRandomInit, build_model
from bsm.configs.refine import RefinerConfig
from bsm.configs.semantic import DeepLabConfig
from pipeline import storage
from pipeline.data.audit import audit_shards, format_audit
from pipeline.data.learnable import describe_gaps, describe_unlearnable
from pipeline.data.manifest import Category, Manifest, read_manifest
from pipeline.data.schema import Task, get_shard_task
from pipeline.data.semantic_fields import REACH_PX
from pipeline.data.shared_photos import find_shared_photos
from pipeline.errors import DatasetError, PipelineError, RecipeError, SetupError, StorageError
from pipeline.evaluation.label_maps import SLIDING_WINDOW_OF_RESIZED
from pipeline.recipe import DataConfig, EvaluationConfig, ModelTask, Recipe, to_json
from pipeline.text import format_count, format_names
from pipeline.tracking.stores import resolve_tracking_uri
from pipeline.training import checkpoint, start_weights
from pipeline.training.checkpoint import CheckpointRef, Identity
from pipeline.training.loop import config_for_resume
from pipeline.training.start_weights import StartWeights, resolve_start_weights
from pipeline.weights.fetch import to_absolute_mirror
from pipeline.weights.published_models import describe_config, find_conflicts

_log = logging.getLogger(__name__)

_MAX_NAMES = 8

_TASK_FIELDS: dict[ModelTask, dict[str, tuple[str, ...]]] = {
    "instance": {
        "data": (
            *("short_edge_px", "test_short_edge_px", "long_edge_px"),
            *("scale_jitter", "crop_px", "copy_paste"),
        ),
        "evaluation": ("paste_bytes", "boxes", "dilation_ratio", "submission", "flip", "scales"),
    },
    "semantic": {
        "data": ("scale_range", "crop_px", "test_size_hw"),
        "evaluation": ("window_px", "window_overlap", "radii_px", "absent", "flip", "scales"),
    },
    "refine": {
        "data": ("short_edge_px", "long_edge_px", "scale_jitter", "crop_px", "copy_paste"),
        "evaluation": ("paste_bytes", "dilation_ratio"),
    },
}
"""Recipe fields that not all models read, by the tasks that do."""

_TASK_METRICS: dict[ModelTask, tuple[str, ...]] = {
    "instance": ("boundary_ap", "mask_ap", "box_ap"),
    "semantic": ("miou",),
    "refine": ("boundary_iou", "mask_iou"),
}
"""Metrics that choose a checkpoint, by task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run that passed all checks."""

    recipe: Recipe
    """With absolute paths."""
    identity: Identity
    run_uri: str
    train_uri: str
    val_uri: str
    categories: tuple[Category, ...]
    train_images: int
    val_fingerprint: str
    audit: str
    """The result of the audit."""
    resume_from: CheckpointRef | None
    parameters: int
    trained_parameters: int
    started_from: str
    """The registered version or published weights that the run starts from, or ""."""


def prepare_run(recipe: Recipe) -> PreparedRun:
    """Check data, recipe, model, earlier checkpoints and storage before anything expensive starts.

    Raises:
        PipelineError: all problems, and what to type to fix them.
    """
    resolved = resolve_paths(recipe)
    train_uri = storage.join(resolved.data.root, resolved.data.train_split)
    val_uri = storage.join(resolved.data.root, resolved.data.val_split)
    train, val = _check_data(resolved, train_uri, val_uri)
    identity = Identity(
        recipe=recipe,
        categories=tuple((c.category_id, c.category_index, c.name) for c in train.categories),
        data_fingerprint=train.fingerprint,
    )
    run_uri = storage.join(resolved.storage, resolved.name)
    resume_from = checkpoint.find_latest(run_uri)
    if resume_from is not None:
        checkpoint.require_same(resume_from, identity=identity)
    config = config_for_resume(resolved.model, resume_from=resume_from)
    with resolve_start_weights(config, resolved, run_uri=run_uri) as start:
        parameters, trained_parameters = _try_build(
            start, checkpoints_activations=resolved.scale.activation_checkpointing
        )
        _warn_of_other_categories(start, train)
        # This also tests that the storage is writable, before the first checkpoint needs it.
        storage.write_bytes_atomic(storage.join(run_uri, "recipe.json"), to_json(recipe).encode())
        start.pin()
    if start.model != config:  # the run's own copy of the weights
        resolved = replace(resolved, model=start.model)
    return PreparedRun(
        recipe=resolved,
        identity=identity,
        run_uri=run_uri,
        train_uri=train_uri,
        val_uri=val_uri,
        categories=train.categories,
        train_images=train.images,
        val_fingerprint=val.fingerprint,
        audit=_summarize_audit(train),
        resume_from=resume_from,
        parameters=parameters,
        trained_parameters=trained_parameters,
        started_from=start_weights.read_start_version(run_uri),
    )


def resolve_paths(recipe: Recipe) -> Recipe:
    """Make the paths of a recipe absolute, because workers have their own working directories."""
    model = recipe.model
    # Each model config has its own backbone config; replace() returns the same class.
    backbone: Any = replace(
        model.backbone, weights=start_weights.to_absolute(model.backbone.weights)
    )
    return replace(
        recipe,
        storage=storage.absolute(recipe.storage),
        weights_mirror=to_absolute_mirror(recipe.weights_mirror),
        data=replace(recipe.data, root=storage.absolute(recipe.data.root)),
        model=replace(model, backbone=backbone, weights=start_weights.to_absolute(model.weights)),
    )


def _try_build(start: StartWeights, *, checkpoints_activations: bool) -> tuple[int, int]:
    """Build the model and load its weights, to count all and the trained parameters."""
    backbone = start.local_model.backbone
    if backbone.weights == "timm":
        # Where the hub cannot be reached, its library tries for a minute.
        _log.info("weights of %s: from timm's cache, or its hub", backbone.name)
    if conflicts := find_conflicts(start.version, start.model):
        raise RecipeError(
            f"model: {start.version} was trained by other rules. Type: {' '.join(conflicts)}"
        )
    try:
        # Categories that the file does not have keep their random values, which are checked too.
        with nullcontext() if start.continues_categories else SkipRandomInit():
            model = build_model(start.local_model)
        if checkpoints_activations:
            checkpoint_activations(model)
    except ValueError as error:
        flags = describe_config(start.version, start.model)
        hint = f" These weights belong to a model with: {flags}" if flags else ""
        raise RecipeError(f"model: {start.name_version(str(error))}{hint}") from error
    counts = [(p.numel(), p.numel() * p.requires_grad) for p in model.parameters()]
    return sum(count for count, _ in counts), sum(count for _, count in counts)


def _warn_of_other_categories(start: StartWeights, train: Manifest) -> None:
    """Warn if heads for other categories fit only because there are equally many."""
    if isinstance(start.model, RefinerConfig):
        return
    before, now = _names(start.categories), _names(train.categories)
    if before and len(before) == len(now) and before != now:
        _log.warning(
            "%s was trained on other categories (%s) than the data has (%s), and its heads start "
            "from them. To initialize parts at random, use --model.weights-leave-out",
            start.version,
            format_names(before, limit=_MAX_NAMES),
            format_names(now, limit=_MAX_NAMES),
        )


def _check_data(recipe: Recipe, train_uri: str, val_uri: str) -> tuple[Manifest, Manifest]:
    problems = [
        *_unused_field_problems(recipe),
        *_label_map_problems(recipe),
        *_best_metric_problems(recipe),
        *_device_problems(recipe),
        *_environment_problems(recipe),
    ]
    manifests: list[Manifest] = []
    for uri in (train_uri, val_uri):
        try:
            manifest = read_manifest(uri)
        except PipelineError as error:
            problems.append(str(error))
            continue
        if manifest.task == get_shard_task(recipe.model.task):
            manifests.append(manifest)
        else:
            problems.append(_describe_other_task(recipe, manifest, uri))
    if len(manifests) == 2:
        train, val = manifests
        problems += _category_problems(recipe, train, val, train_uri=train_uri, val_uri=val_uri)
        problems += _submission_problems(recipe, val, val_uri)
        problems += _content_problems(train, val, train_uri=train_uri, val_uri=val_uri)
    if problems:
        raise RecipeError("\n".join(problems))
    broken = [(uri, found) for uri in (train_uri, val_uri) if (found := audit_shards(uri))]
    if broken:
        raise DatasetError("\n".join(format_audit(uri, found) for uri, found in broken))
    _warn_of_shared_photos(train_uri, val_uri)
    return train, val


def _warn_of_shared_photos(train_uri: str, val_uri: str) -> None:
    # Whoever names one split twice wants it.
    shared = find_shared_photos(train_uri, val_uri) if train_uri != val_uri else []
    if shared:
        _log.warning(
            "%s shares %s with %s, so its scores will be too good: %s",
            *(val_uri, format_count(len(shared), "photo"), train_uri),
            format_names(shared, limit=_MAX_NAMES),
        )


def _summarize_audit(train: Manifest) -> str:
    dropped = ", ".join(f"{count} {kind}" for kind, count in train.rejects.items())
    fixed = ", ".join(f"{count} {kind}" for kind, count in train.fixed.items())
    text = f"ok, dropped at ingest: {dropped}" if dropped else "ok, nothing dropped at ingest"
    return f"{text}; fixed: {fixed}" if fixed else text


def _category_problems(
    recipe: Recipe, train: Manifest, val: Manifest, *, train_uri: str, val_uri: str
) -> list[str]:
    problems: list[str] = []
    if isinstance(recipe.model, RefinerConfig):
        return problems
    count = len(train.categories)
    train_names, val_names = (
        format_names(_names(split.categories), limit=_MAX_NAMES) for split in (train, val)
    )
    if count != recipe.model.num_classes:
        problems.append(
            f"model.num_classes is {recipe.model.num_classes}, {train_uri} has {count} categories "
            f"({train_names}). Type: --model.num-classes {count}"
        )
    if train.categories != val.categories:
        problems.append(
            f"{val_uri} has other categories ({val_names}) than {train_uri} ({train_names}). "
            "Ingest both from annotation files with the same categories"
        )
    return problems


def _content_problems(train: Manifest, val: Manifest, *, train_uri: str, val_uri: str) -> list[str]:
    """Refuse training data without anything to learn, and warn of all else that is missing."""
    if reason := describe_unlearnable(train):
        return [
            f"{train_uri} has nothing to learn: {reason}. Fix the data set and ingest it again "
            "with --overwrite, or choose other data with --data.root and --data.train-split"
        ]
    gaps = [(train_uri, gap) for gap in describe_gaps(train)]
    if reason := describe_unlearnable(val):
        gaps.append((val_uri, f"there is nothing to measure: {reason}"))
    for gap in gaps:
        _log.warning("%s: %s", *gap)
    return []


def _submission_problems(recipe: Recipe, val: Manifest, uri: str) -> list[str]:
    if not recipe.evaluation.submission or val.is_cityscapes:
        return []
    return [
        f"evaluation.submission writes the official format of Cityscapes, but {uri} was made from "
        f"{val.source.partition(' ')[0] or 'another source'}. Type: --evaluation.no-submission"
    ]


def _describe_other_task(recipe: Recipe, manifest: Manifest, uri: str) -> str:
    jobs: dict[Task, str] = {
        "instance": "coco_r50.py",
        "semantic": "cityscapes_semantic_r50.py",
    }
    task = recipe.model.task
    return (
        f"{uri} holds {manifest.task} shards; this recipe trains {task} models. Choose other "
        f"shards with --data.root, or train on these with: python jobs/{jobs[manifest.task]} "
        f"--data.root {recipe.data.root}"
    )


def _unused_field_problems(recipe: Recipe) -> list[str]:
    """List changed fields that this model does not read: their user expects an effect."""
    task, problems = recipe.model.task, []
    for part, config in (("data", DataConfig), ("evaluation", EvaluationConfig)):
        readers: dict[str, list[ModelTask]] = {}
        for each, fields in _TASK_FIELDS.items():
            for name in fields[part]:
                readers.setdefault(name, []).append(each)
        problems += [
            f"{part}.{name} is only for {' and '.join(tasks)} models, and this is a {task} model: "
            "leave it out"
            for name, tasks in readers.items()
            if task not in tasks and getattr(getattr(recipe, part), name) != getattr(config(), name)
        ]
    crops = task == "semantic" or recipe.data.scale_jitter is not None
    if not crops and recipe.data.crop_px != DataConfig().crop_px:
        problems.append(
            f"data.crop_px is the square of data.scale_jitter, which is off in this {task} model: "
            "leave it out, or set --data.scale-jitter"
        )
    return problems


def _label_map_problems(recipe: Recipe) -> list[str]:
    model, problems = recipe.model, []
    if not isinstance(model, DeepLabConfig):
        return []
    kernel, min_scale = model.head.targets.kernel_size, recipe.data.scale_range[0]
    reach = (kernel - 1) // 2
    # Targets are read from a distance field that ends at REACH_PX.
    if model.head.kind == "squeeze" and reach > min_scale * (REACH_PX - 0.5):
        problems.append(
            f"model.head.targets.kernel_size {kernel} reaches {reach} px, but shards store "
            f"distances up to {REACH_PX} px around a border, which become "
            f"{min_scale * REACH_PX:g} px when an image is resized by {min_scale:g}. Use a smaller "
            "kernel, or a larger first value of --data.scale-range"
        )
    if recipe.evaluation.window_px is not None and recipe.data.test_size_hw is not None:
        problems.append(SLIDING_WINDOW_OF_RESIZED)
    return problems


def _best_metric_problems(recipe: Recipe) -> list[str]:
    """Refuse a metric that no evaluation of this run gives: it would never choose."""
    metric, known = recipe.checkpoint.best_metric, list(_TASK_METRICS[recipe.model.task])
    if recipe.model.task == "semantic" and 3 in recipe.evaluation.radii_px:
        known.append("boundary_f_3px")
    if recipe.evaluation.boxes == "truth":
        known += _TASK_METRICS["refine"]
    if metric in {"", "val_loss", *known}:
        return []
    return [
        f"checkpoint.best_metric {metric} is no metric of this evaluation, which gives "
        f"{', '.join(known)} and val_loss. Type: --checkpoint.best-metric {known[0]}"
    ]


def _device_problems(recipe: Recipe) -> list[str]:
    scale, problems = recipe.scale, []
    if scale.use_gpu and scale.num_workers == 0 and not torch.cuda.is_available():
        problems.append(
            "scale.use_gpu is true, but torch finds no GPU on this machine. "
            "Type: --scale.no-use-gpu"
        )
    # One worker has a process group too, and there torch refuses it.
    if recipe.model.backbone.norm == "sync" and scale.num_workers > 0 and not scale.use_gpu:
        problems.append(
            "model.backbone.norm is sync, which needs GPUs. Type: --model.backbone.norm group "
            "(with pretrained weights: batch, with statistics of each worker's own images)"
        )
    return problems


def _environment_problems(recipe: Recipe) -> list[str]:
    """Check what the run would only meet after its other checks, or after minutes of waiting."""
    problems = []
    try:
        # Without a URI, an object store has no store of its own, which is logged once, later.
        if recipe.tracking.uri or storage.is_local(recipe.storage):
            resolve_tracking_uri(recipe.tracking.uri, storage_uri=recipe.storage)
    except StorageError as error:
        problems.append(str(error))
    if recipe.scale.num_workers:
        from pipeline.ray_connection import check_environment  # noqa: PLC0415  imports ray

        try:
            check_environment()
        except SetupError as error:
            problems.append(str(error))
    return problems


def _names(categories: tuple[Category, ...]) -> list[str]:
    return [category.name for category in categories]
