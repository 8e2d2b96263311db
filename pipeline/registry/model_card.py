"""Write the model card of a registered version, from the files of the version alone.

The card is one of these files and is rewritten whenever its content changes. A short form is the
version's description in the registry.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.models import ModelConfig
from bsm.configs.refine import RefinerConfig
from pipeline.data.manifest import Category
from pipeline.recipe import ModelTask, Recipe, fingerprint
from pipeline.registry.champions import AliasChange
from pipeline.registry.comparison import choose_metric, get_per_category
from pipeline.registry.provenance import EvaluationRecord, Origin, TrainingData
from pipeline.registry.versions import CHAMPION, Version
from pipeline.text import format_names, format_score

_EXTREMES = 5
"""Number of best and of worst categories to list."""

_FEW_IMAGES = 20
"""Categories with fewer training images are listed as limits."""

_MAX_NAMES = 100

_SIZES = {
    "": "all",
    "50": "IoU .50",
    "75": "IoU .75",
    "_small": "small",
    "_medium": "medium",
    "_large": "large",
}
_FAMILIES = ("mask", "boundary", "box")


@dataclass(frozen=True, kw_only=True, slots=True)
class CardContent:
    """Everything that a model card reports."""

    recipe: Recipe
    categories: Sequence[Category]
    origin: Origin
    training_data: TrainingData | None
    """None if it was not recorded."""
    evaluations: Sequence[EvaluationRecord]
    """The one at registration first."""
    alias_log: Sequence[AliasChange]
    """Changes of the model's champion alias, oldest first."""


def format_card(version: Version, content: CardContent) -> str:
    """Format the model card as Markdown."""
    parts = [
        [f"# {version.name}, version {version.version}", "", summarize_model(content)],
        _format_origin(version, content),
        _format_data(content),
        *(format_evaluation(record, content) for record in content.evaluations),
        _format_alias_log(version, content),
        _format_usage(version, content.recipe.model),
        _format_limits(content),
        _format_environment(content.origin),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def format_description(version: Version, content: CardContent) -> str:
    """Summarize the version in a few lines, for the registry's page."""
    first = content.evaluations[0]
    key = choose_metric(first, first)
    score = format_score(first.metrics[key]) if key else ""
    measured = f"{key} {score} on {first.evaluated_on}" if key else "not measured"
    data = content.training_data
    trained = f"Trained on {data.images} images ({data.fingerprint})" if data else "Trained"
    return (
        f"{summarize_model(content)}\n\n"
        f"{trained}; {measured}. License: {_get_license(content.recipe)}.\n\n"
        f"Full model card: model_card.md in its files, or "
        f"`python jobs/models.py show {version.uri}`."
    )


def summarize_model(content: CardContent) -> str:
    """Summarize task and architecture in one sentence."""
    model = content.recipe.model
    count = len(content.categories)
    tasks: dict[ModelTask, str] = {
        "instance": f"Finds objects of {count} categories in photos, with a mask for each",
        "semantic": f"Assigns one of {count} classes to each pixel of a photo",
        "refine": "Sharpens given masks of objects in photos, of any category",
    }
    return f"{tasks[model.task]}: {_format_architecture(model)}."


def _format_architecture(model: ModelConfig) -> str:
    if isinstance(model, RefinerConfig):
        parts = {"none": "", "plain": " with the squeeze", "guided": " with the guided squeeze"}
        return f"refiner{parts[model.squeeze]} on {model.backbone.name}"
    if isinstance(model, MaskRCNNConfig):
        kind, name = model.mask_head.kind, "Mask R-CNN"
        squeeze, kernel_size = model.mask_head.squeeze, model.mask_head.targets.kernel_size
        name = f"Cascade {name}" if model.box_head.kind == "cascade" else name
    else:
        kind, name = model.head.kind, "DeepLabV3+"
        squeeze, kernel_size = model.head.squeeze, model.head.targets.kernel_size
    heads = {
        "plain": "",
        "bmask": " with BMask R-CNN's boundary head",
        "pointrend": " with PointRend",
        "squeeze": (
            f" with the boundary squeeze ({squeeze.variant} variant, kernel size {kernel_size})"
        ),
    }
    return f"{name}{heads[kind]} on {model.backbone.name}"


def _format_origin(version: Version, content: CardContent) -> list[str]:
    recipe, origin = content.recipe, content.origin
    optim = recipe.optim
    created = datetime.fromtimestamp(version.created_ms / 1000, tz=UTC)
    start = origin.started_from or _format_start(recipe.model)
    rows = [
        ("license", _get_license(recipe)),
        ("registered", f"{created:%Y-%m-%d %H:%M} UTC, from run {origin.run_name}"),
        ("recipe", f"{recipe.name}, fingerprint {fingerprint(recipe)}, in artifacts/recipe.json"),
        ("training", f"{optim.steps} steps of {optim.global_batch} images, seed {recipe.seed}"),
        ("starts from", start),
        ("weights", f"{origin.weights_bytes / 1e6:.1f} MB of safetensors"),
        ("code", origin.environment.git_commit or "not in a repository"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _format_start(model: ModelConfig) -> str:
    if model.weights:
        return model.weights
    return {"": "random", "timm": "timm's ImageNet weights of the backbone"}.get(
        model.backbone.weights, f"backbone {model.backbone.weights}"
    )


def _get_license(recipe: Recipe) -> str:
    return recipe.tracking.license or "not stated"


def _format_data(content: CardContent) -> list[str]:
    data = content.training_data
    if data is None:
        return ["## Data", "", "The training data was not recorded."]
    dropped = ", ".join(f"{count} {kind}" for kind, count in data.rejects.items())
    names = [
        f"{category.name} ({data.category_images[category.name]})"
        if category.name in data.category_images
        else category.name
        for category in content.categories
    ]
    return [
        "## Data",
        "",
        f"Trained on {data.images} images with {data.annotations} annotations, fingerprint "
        f"{data.fingerprint}: {data.source or 'source not recorded'}. Dropped at ingest: "
        f"{dropped or 'nothing'}.",
        "",
        f"Categories, with their training images: {format_names(names, limit=_MAX_NAMES)}.",
    ]


def format_evaluation(record: EvaluationRecord, content: CardContent) -> list[str]:
    """Format one evaluation: overall and by object size, then by category."""
    families = [name for name in _FAMILIES if f"{name}_ap" in record.metrics]
    others = {
        name: value
        for name, value in record.metrics.items()
        if not name.startswith(tuple(f"{family}_a" for family in families))
    }
    lines = ["## Numbers", "", f"Measured on {record.evaluated_on}.", ""]
    if families:
        lines += ["| | " + " | ".join(_SIZES.values()) + " |", "|---|" + "---|" * len(_SIZES)]
        for name in families:
            cells = (record.metrics.get(f"{name}_ap{size}", math.nan) for size in _SIZES)
            lines.append(f"| {name} AP | " + " | ".join(map(format_score, cells)) + " |")
    if others:
        gap = [""] if families else []
        lines += [*gap, "| | |", "|---|---|"]
        lines += [f"| {name} | {format_score(value)} |" for name, value in others.items()]
    return lines + _format_categories(record, content)


def _format_categories(record: EvaluationRecord, content: CardContent) -> list[str]:
    key = choose_metric(record, record)
    known = {k: v for k, v in get_per_category(record, key).items() if math.isfinite(v)}
    if not known:
        return []
    names = sorted(known, key=lambda name: -known[name])
    dropped = len(names) - 2 * _EXTREMES
    columns = list(record.per_category[names[0]])
    seen = content.training_data.category_images if content.training_data else {}
    rows = [
        f"| {name} | {seen.get(name, '-')} | "
        + " | ".join(
            format_score(record.per_category[name].get(column, math.nan)) for column in columns
        )
        + " |"
        for name in names
    ]
    if dropped > 1:
        gap = f"| ... {dropped} more ... |" + " |" * (len(columns) + 1)
        rows = [*rows[:_EXTREMES], gap, *rows[-_EXTREMES:]]
    return [
        "",
        f"Best and worst categories by {key}:" if dropped > 1 else f"By {key}:",
        "",
        "| category | training images | " + " | ".join(columns) + " |",
        "|---|" + "---|" * (len(columns) + 1),
        *rows,
    ]


def _format_alias_log(version: Version, content: CardContent) -> list[str]:
    lines = []
    for change in content.alias_log:
        if version.version in (change.version, change.before):
            at = datetime.fromtimestamp(change.time_ms / 1000, tz=UTC)
            became = f"version {change.version or 'none'} became the {CHAMPION}"
            reason = f" Reason: {change.reason}" if change.reason else ""
            lines.append(
                f"- {at:%Y-%m-%d %H:%M} UTC, {change.how}: {became}; {change.text}.{reason}"
            )
    return ["## As champion", "", *lines] if lines else []


def _format_usage(version: Version, model: ModelConfig) -> list[str]:
    tasks: dict[ModelTask, str] = {"instance": "", "semantic": "DeepLabV3+ ", "refine": "refiner "}
    inputs, command = '"photo.jpg", encoded_bytes, array', "predict.py --images photos --out out"
    if model.task == "refine":
        inputs = '{"image": "photo.jpg", "masks": [rle, png_bytes, array]}'
        command = "refine.py --images photos --detections results.json --out refined.json"
    job, flags = command.split(maxsplit=1)
    return [
        "## Use",
        "",
        "Set `MLFLOW_TRACKING_URI` to the registry: http://HOST:PORT, or sqlite:///FILE.",
        "",
        "In Python, with its requirements.txt installed; needs neither GPU nor Ray:",
        "",
        "```python",
        "import mlflow",
        "",
        f'model = mlflow.pyfunc.load_model("{version.uri}")',
        f"rows = model.predict([{inputs}])",
        "```",
        "",
        "On a command line, with this package installed:",
        "",
        "```",
        f"python jobs/{job} --model {version.uri} {flags}",
        f"python jobs/models.py evaluate {version.uri} --data SHARDS_OF_A_SPLIT",
        f"mlflow models serve -m {version.uri} --env-manager local",
        "```",
        "",
        f"To start training from it, add to any {tasks[model.task]}job of the same architecture:",
        "",
        "```",
        f"--model.weights {version.uri}",
        "```",
    ]


def _format_limits(content: CardContent) -> list[str]:
    recipe = content.recipe
    seen = content.training_data.category_images if content.training_data else {}
    first = content.evaluations[0]
    key = choose_metric(first, first)
    names = [category.name for category in content.categories]
    by_category = get_per_category(first, key)
    unmeasured = [n for n in names if by_category and math.isnan(by_category.get(n, math.nan))]
    few = [name for name in names if name in seen and seen[name] < _FEW_IMAGES]
    sizes = [first.metrics.get(f"{key}_{size}", math.nan) for size in ("small", "large")]
    lines = [
        *_format_task_limits(recipe, len(names)),
        f"Its metrics hold for photos like those of the evaluation ({first.evaluated_on}); other "
        "photos were not tested.",
        "EXIF orientation is not applied.",
    ]
    if all(map(math.isfinite, sizes)):
        lines.append(f"Small objects reach {key} {sizes[0]:.4f}, large ones {sizes[1]:.4f}.")
    if few:
        lines.append(f"Fewer than {_FEW_IMAGES} training images: {format_names(few)}.")
    if unmeasured:
        lines.append(f"Not measured, as the evaluation has none: {format_names(unmeasured)}.")
    if not recipe.tracking.license:
        lines.append(
            "No license was stated: before distributing it, check the terms of its data and of its "
            "start weights."
        )
    return ["## Limits", "", *(f"- {line}" for line in lines)]


def _format_task_limits(recipe: Recipe, categories: int) -> list[str]:
    if recipe.model.task == "refine":
        return [
            "It corrects outlines: an object that the given mask misses stays missed.",
            "Its metrics are those of masks that were damaged on purpose; masks of your source may "
            "improve more or less. Measure it with `jobs/refine.py --truth`.",
        ]
    data = recipe.data
    return [
        f"It recognizes its {categories} categories only.",
        f"Photos are scaled to a short edge of {data.test_short_edge_px} px, and a long edge of at "
        f"most {data.long_edge_px} px.",
    ]


def _format_environment(origin: Origin) -> list[str]:
    environment = origin.environment
    packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    return [
        "## Environment",
        "",
        f"Registered with Python {environment.python} on {environment.system}; {packages}. "
        f"requirements.txt lists what prediction needs; that of run {origin.run_id} lists all "
        "installed packages.",
    ]
