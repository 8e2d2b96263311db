"""Derive the recipe that fine-tunes a trained model on new data.

The model, its image sizes and its optimizer are those that it was trained with. What depends on the
amount of data is derived from the number of images, and each derived value is told with its reason.
Values that the user sets stay.
"""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bsm.configs.models import ModelConfig, without_weights
from pipeline import storage
from pipeline.data.manifest import MANIFEST_FILE, Manifest, read_manifest
from pipeline.data.schema import get_shard_task
from pipeline.errors import RecipeError
from pipeline.recipe import (
    DataConfig,
    OptimConfig,
    Recipe,
    ScaleConfig,
    TrackingConfig,
    from_json,
)
from pipeline.registry.versions import (
    CATEGORIES_FILE,
    RECIPE_FILE,
    find_version,
    is_model_uri,
    read_file,
)
from pipeline.serving.artifacts import categories_from_json
from pipeline.text import format_count, format_names, suggest
from pipeline.tracking.stores import resolve_tracking_uri
from pipeline.training.start_weights import read_start_version
from pipeline.weights.published_models import MODELS, list_categories

MAX_BATCH = 16
IMAGES_PER_BATCH_IMAGE = 25
"""A batch has one image for so many of the data set, so that an epoch has steps enough."""
EPOCHS = 12
"""As many as the usual schedule on COCO has."""
MIN_STEPS = 300
"""Fewer do not train the rows of new categories, however small the data set."""
SGD_SHARE = 0.1
"""Share of SGD's rate per image, as detectron2's tutorial has for 61 photos of balloons."""
ADAM_SHARE = 0.25
"""Share of AdamW's rate, whatever the batch: the length of its steps depends on the rate alone."""
COPY_PASTE = 0.5
"""Share of the photos into which objects are pasted: of all augmentations the one that helped."""

_SGD = OptimConfig()
"""detectron2's, with which the published models were trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartModel:
    """A trained model, and how it was trained."""

    reference: str
    """As typed: models:/NAME@ALIAS, or the name of published weights."""
    version: str
    """models:/NAME/VERSION, or the name of published weights."""
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    categories: tuple[str, ...]
    """Names, in the order of its predictors."""


def find_start(reference: str, *, tracking: str, storage_uri: str, name: str) -> StartModel:
    """Look up the model to start from.

    Args:
        reference: models:/NAME@ALIAS, models:/NAME/VERSION, torchvision:NAME or detectron2:NAME.
        tracking: URI of the registry; "" means the embedded store under storage_uri.
        storage_uri: as a recipe's storage.
        name: of the run; if it has started, its version is taken even if the alias has moved.

    Raises:
        RecipeError: the reference is no whole model.
        RegistryError: there is no such version.
    """
    if is_model_uri(reference):
        run_uri = storage.join(storage.absolute(storage_uri), name)
        version = find_version(
            read_start_version(run_uri, typed=reference) or reference,
            registry=resolve_tracking_uri(tracking, storage_uri=storage_uri),
        )
        recipe = from_json(read_file(version, RECIPE_FILE))
        categories = categories_from_json(read_file(version, CATEGORIES_FILE).decode())
        return StartModel(
            reference=reference,
            version=version.uri,
            model=recipe.model,
            data=recipe.data,
            optim=recipe.optim,
            categories=tuple(each.name for each in categories),
        )
    if reference not in MODELS:
        if reference.startswith("model:/"):
            raise RecipeError(f"--from {reference}: perhaps you meant models{reference[5:]}")
        raise RecipeError(
            f"--from {reference}: no whole model is known by this name"
            f"{suggest(reference, MODELS)}; give models:/NAME@champion or one of: "
            f"{', '.join(MODELS)}"
        )
    return StartModel(
        reference=reference,
        version=reference,
        model=MODELS[reference].config,
        data=DataConfig(),
        optim=_SGD,
        categories=list_categories(reference),
    )


def choose_split(root: str, word: str) -> str:
    """Choose the split of a data set whose name starts with a word: "train" or "val".

    Raises:
        RecipeError: there is none, or there are several.
    """
    if storage.exists(storage.join(root, MANIFEST_FILE)):
        folder, _, name = root.rstrip("/").rpartition("/")
        raise RecipeError(
            f"--data.root {root}: is a split itself; give the folder that it is in, "
            f"--data.root {folder or '.'}, and to train on it, --data.train-split {name}"
        )
    if not storage.is_folder(root):
        raise RecipeError(
            f"--data.root {root}: there is no such folder; make shards in it with: bsm ingest"
        )
    folders: list[str] = [info.base_name for info in storage.list_folder(root) if not info.is_file]
    splits = [
        name for name in sorted(folders) if storage.exists(storage.join(root, name, MANIFEST_FILE))
    ]
    found = [name for name in splits if name.startswith(word)]
    exact = [name for name in found if name == word]
    if len(exact or found) != 1:
        flag = f"--data.{word}-split"
        if not splits:
            raise RecipeError(
                f"--data.root {root}: holds no shards; make them with: bsm ingest ... --out "
                f"{storage.join(root, word)}"
            )
        raise RecipeError(
            f"--data.root {root}: {format_count(len(found), 'split')} with a name that starts with "
            f"{word!r}, among: {', '.join(splits)}. Name one: {flag} NAME. If there is none yet, "
            "make it with: bsm ingest"
        )
    return (exact or found)[0]


def make_recipe(start: StartModel, data: DataConfig, *, name: str) -> tuple[Recipe, Manifest]:
    """Make the recipe of a run, before its values are fitted to the number of images.

    Args:
        start: the model to start from.
        data: names the shards.
        name: of the run and of the registered model.

    Raises:
        DatasetError: there are no shards.
        RecipeError: the model has another task than the data.
    """
    uri = storage.join(data.root, data.train_split)
    manifest = read_manifest(uri)
    task = start.model.task
    if task == "refine":
        raise RecipeError(
            f"--from {start.reference}: is a refiner, which has no categories to match; train it "
            f"with: python jobs/refine_coco.py --model.weights {start.reference}"
        )
    if manifest.task != get_shard_task(task):
        raise RecipeError(
            f"--from {start.reference}: is a model of task {task}, and {uri} holds "
            f"{manifest.task} shards. Start from another model, or give other shards"
        )
    model = continue_model(start, [each.name for each in manifest.categories])
    shards = {field: getattr(data, field) for field in ("root", "train_split", "val_split")}
    scale = _choose_scale()
    batch = _choose_batch(manifest.images, workers=max(scale.num_workers, 1))
    recipe = Recipe(
        name=name,
        model=model,
        data=replace(start.data, **shards),
        optim=replace(start.optim, global_batch=batch),
        scale=scale,
        tracking=TrackingConfig(model_name=name),
    )
    return recipe, manifest


def continue_model(start: StartModel, names: Sequence[str]) -> ModelConfig:
    """Configure a model for other categories, each of which continues the one of the same name."""
    known = {_normalize(name): index for index, name in enumerate(start.categories)}
    indices = tuple(known.get(_normalize(name), -1) for name in names)
    # Each model config is a class of its own; replace() returns the same class.
    model: Any = without_weights(start.model)
    is_same = indices == tuple(range(len(start.categories)))
    continued: ModelConfig = replace(
        model,
        num_classes=len(names),
        weights=start.reference,
        weights_categories=() if is_same else indices,
    )
    return continued


def describe_categories(start: StartModel, names: Sequence[str]) -> str:
    """Say which categories continue one of the model, and which start at random."""
    known = {_normalize(name) for name in start.categories}
    kept = [name for name in names if _normalize(name) in known]
    new = [name for name in names if _normalize(name) not in known]
    text = f"fine-tune: from {start.version} ({format_count(len(start.categories), 'category')})"
    if not kept:
        return (
            f"{text}: none of its categories has the name of one here, so the predictors start at "
            f"random: {format_names(new)}"
        )
    rest = f"; at random: {format_names(new)}" if new else ""
    return f"{text}: {len(kept)} of {len(names)} continue by name: {format_names(kept)}{rest}"


def fit_to_images(
    recipe: Recipe, *, given: Collection[str], images: int, start: OptimConfig
) -> tuple[Recipe, list[str]]:
    """Derive batch, schedule and learning rate from the number of images.

    Args:
        recipe: with the user's values.
        given: paths of the fields that the user has set, such as "optim.steps".
        images: of the training split.
        start: the optimizer that the model was trained with.

    Returns:
        The recipe, and a flag with its reason for each derived value.
    """
    notices = []
    for path, value, reason in (
        *_derive_schedule(recipe, given=given, images=images, start=start),
        *_derive_for_few_images(recipe, given=given),
    ):
        recipe = _set_field(recipe, path, value)
        shown = f"{value:.3g}" if isinstance(value, float) else value
        notices.append(f"fine-tune: --{path.replace('_', '-')} {shown}: {reason}")
    return recipe, notices


def _derive_schedule(
    recipe: Recipe, *, given: Collection[str], images: int, start: OptimConfig
) -> Iterator[tuple[str, Any, str]]:
    """Yield the path, the value and the reason of each field that the user did not set."""
    optim = recipe.optim
    batch = optim.global_batch
    if "optim.global_batch" not in given:
        batch = _choose_batch(images, workers=max(recipe.scale.num_workers, 1))
        share = f"one for each {IMAGES_PER_BATCH_IMAGE} of {images} images"
        yield "optim.global_batch", batch, f"{share}, as a power of two from 2 to {MAX_BATCH}"
    steps = optim.steps
    if "optim.steps" not in given:
        steps = max(MIN_STEPS, math.ceil(EPOCHS * images / batch))
        epochs = steps * batch / images
        least = f"at least {EPOCHS}, and {MIN_STEPS} steps"
        yield "optim.steps", steps, f"{epochs:.0f} epochs ({least})"
    if "optim.lr_per_image" not in given:
        value, share = _derive_rate(optim, batch=batch, start=start)
        yield "optim.lr_per_image", value, f"{share}, so that it keeps what it knows"
    if "optim.schedule" not in given:
        yield "optim.schedule", "cosine", "falls to 0 however many steps there are"
    if "optim.warmup_steps" not in given:
        yield "optim.warmup_steps", steps // 10, "a tenth of the steps"
    if "checkpoint.every_steps" not in given:
        yield "checkpoint.every_steps", max(steps // 4, 1), "a quarter of the steps"


def _derive_for_few_images(
    recipe: Recipe, *, given: Collection[str]
) -> Iterator[tuple[str, Any, str]]:
    """Yield the same for fields whose value does not depend on the number."""
    is_free = "data.copy_paste" not in given and not recipe.data.copy_paste
    if is_free and recipe.model.task == "instance":
        reason = "objects of another photo are pasted into half of the photos"
        yield "data.copy_paste", COPY_PASTE, reason
    if recipe.model.backbone.norm in {"batch", "sync"} and "model.backbone.norm" not in given:
        reason = "batches this small have poorer statistics than those of its training"
        yield "model.backbone.norm", "frozen", reason


def _derive_rate(optim: OptimConfig, *, batch: int, start: OptimConfig) -> tuple[float, str]:
    if optim.optimizer != start.optimizer:
        raise RecipeError(
            f"--optim.optimizer {optim.optimizer} needs --optim.lr-per-image: the rate that the "
            f"model was trained at is one of {start.optimizer}"
        )
    if optim.optimizer == "adamw":
        value = start.lr * ADAM_SHARE / batch
        whole = f"{ADAM_SHARE:g} of the model's own rate {start.lr:.3g} for a whole batch"
        return value, f"{whole}, divided by {batch} images"
    value = start.lr_per_image * SGD_SHARE
    return value, f"{SGD_SHARE:g} of the model's own {start.lr_per_image:.3g} per image"


def _set_field(config: Any, path: str, value: object) -> Any:  # noqa: ANN401  of any class
    name, _, rest = path.partition(".")
    return replace(
        config, **{name: _set_field(getattr(config, name), rest, value) if rest else value}
    )


def _choose_batch(images: int, *, workers: int) -> int:
    """Choose a power of two that all workers share evenly."""
    wanted = 1 << int(math.log2(max(images / IMAGES_PER_BATCH_IMAGE, 2)))
    return math.ceil(min(MAX_BATCH, wanted) / workers) * workers


def _choose_scale() -> ScaleConfig:
    """Use this machine's GPUs, or this process."""
    import torch  # noqa: PLC0415  only where a recipe is made

    gpus = torch.cuda.device_count()
    return ScaleConfig(num_workers=gpus, use_gpu=gpus > 0)


def _normalize(name: str) -> str:
    """Ignore case, and how words are joined."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def name_run(root: str) -> str:
    """Name a run and its model after the folder of the data."""
    folder = root.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", folder).strip("-.") or "finetune"
