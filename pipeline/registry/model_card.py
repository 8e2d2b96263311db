"""The model card of a registered version: what it is, what stands behind it, how to use it.

Written from what the version carries, so it says what is so and nothing else. It is put among the
version's files whenever something in it changes, and its first lines are the version's description.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bsm.configs.instance import MaskRCNNConfig
from pipeline.data.manifest import Category
from pipeline.evaluation.table import number
from pipeline.recipe import AnyModel, Recipe, fingerprint
from pipeline.registry.champions import Move
from pipeline.registry.comparison import deciding, of_categories
from pipeline.registry.provenance import Measured, Origin, TrainedOn
from pipeline.registry.versions import CHAMPION, Version

_EXTREMES = 5
"""So many best and so many worst categories are listed."""

_FEW_IMAGES = 20
"""Categories seen in fewer training images are named among the limits."""

_MOST_NAMES = 100

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
class Content:
    """What a version carries beside its weights."""

    recipe: Recipe
    categories: Sequence[Category]
    origin: Origin
    trained_on: TrainedOn | None
    """None where it was not noted."""
    evaluations: Sequence[Measured]
    """The first is the one that it was registered with."""
    moves: Sequence[Move]
    """Of the model's champion alias, oldest first."""


def card(version: Version, content: Content) -> str:
    """Write the model card, in Markdown."""
    parts = [
        [f"# {version.name}, version {version.version}", "", what_it_is(content)],
        _origin(version, content),
        _data(content),
        *(numbers(measured, content) for measured in content.evaluations),
        _champion(version, content),
        _use(version, content.recipe.model),
        _limits(content),
        _environment(content.origin),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def description(version: Version, content: Content) -> str:
    """Say it in a few lines, for the registry's own page."""
    first = content.evaluations[0]
    key = deciding(first, first)
    measured = (
        f"{key} {number(first.metrics[key])} on {first.evaluated_on}" if key else "not measured"
    )
    data = content.trained_on
    trained = f"Trained on {data.images} images ({data.fingerprint})" if data else "Trained"
    return (
        f"{what_it_is(content)}\n\n{trained}; {measured}. License: {_license(content.recipe)}.\n\n"
        f"The whole card: model_card.md among its files, or "
        f"`python jobs/models.py show {version.uri}`."
    )


def what_it_is(content: Content) -> str:
    """Say in a sentence what the model does and how."""
    model = content.recipe.model
    count = len(content.categories)
    if model.task == "semantic":
        does = f"Gives each pixel of a photo one of {count} classes"
    else:
        does = f"Finds objects of {count} categories in photos, and draws the mask of each"
    return f"{does}: {_architecture(model)}."


def _architecture(model: AnyModel) -> str:
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


def _origin(version: Version, content: Content) -> list[str]:
    recipe, origin = content.recipe, content.origin
    optim = recipe.optim
    created = datetime.fromtimestamp(version.created_ms / 1000, tz=UTC)
    start = origin.started_from or _start(recipe.model)
    rows = [
        ("license", _license(recipe)),
        ("registered", f"{created:%Y-%m-%d %H:%M} UTC, from run {origin.run_name}"),
        ("recipe", f"{recipe.name}, fingerprint {fingerprint(recipe)}, in artifacts/recipe.json"),
        ("training", f"{optim.steps} steps of {optim.global_batch} images, seed {recipe.seed}"),
        ("starts from", start),
        ("weights", f"{origin.weights_bytes / 1e6:.1f} MB of safetensors"),
        ("code", origin.environment.git_commit or "in no repository"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _start(model: AnyModel) -> str:
    if model.weights:
        return model.weights
    return {"": "random", "timm": "timm's ImageNet weights of the trunk"}.get(
        model.backbone.weights, f"trunk {model.backbone.weights}"
    )


def _license(recipe: Recipe) -> str:
    return recipe.tracking.license or "not stated"


def _data(content: Content) -> list[str]:
    data = content.trained_on
    if data is None:
        return ["## Data", "", "What it was trained on was not noted."]
    left_out = ", ".join(f"{count} {kind}" for kind, count in data.rejects.items())
    names = [
        f"{category.name} ({data.category_images[category.name]})"
        if category.name in data.category_images
        else category.name
        for category in content.categories
    ]
    more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return [
        "## Data",
        "",
        f"Trained on {data.images} images with {data.annotations} annotations, fingerprint "
        f"{data.fingerprint}: {data.source or 'a source that was not noted'}. Left out at ingest: "
        f"{left_out or 'nothing'}.",
        "",
        f"Categories, with their training images: {', '.join(names[:_MOST_NAMES])}{more}.",
    ]


def numbers(measured: Measured, content: Content) -> list[str]:
    """Lay out one evaluation: overall and by size, then by category."""
    families = [name for name in _FAMILIES if f"{name}_ap" in measured.metrics]
    others = {
        name: value
        for name, value in measured.metrics.items()
        if not name.startswith(tuple(f"{family}_a" for family in families))
    }
    lines = ["## Numbers", "", f"Measured on {measured.evaluated_on}.", ""]
    if families:
        lines += ["| | " + " | ".join(_SIZES.values()) + " |", "|---|" + "---|" * len(_SIZES)]
        for name in families:
            cells = (measured.metrics.get(f"{name}_ap{size}", math.nan) for size in _SIZES)
            lines.append(f"| {name} AP | " + " | ".join(map(number, cells)) + " |")
    if others:
        gap = [""] if families else []
        lines += [*gap, "| | |", "|---|---|"]
        lines += [f"| {name} | {number(value)} |" for name, value in others.items()]
    return lines + _extremes(measured, content)


def _extremes(measured: Measured, content: Content) -> list[str]:
    key = deciding(measured, measured)
    known = {k: v for k, v in of_categories(measured, key).items() if math.isfinite(v)}
    if not known:
        return []
    names = sorted(known, key=lambda name: -known[name])
    dropped = len(names) - 2 * _EXTREMES
    columns = list(measured.per_category[names[0]])
    seen = content.trained_on.category_images if content.trained_on else {}
    rows = [
        f"| {name} | {seen.get(name, '-')} | "
        + " | ".join(
            number(measured.per_category[name].get(column, math.nan)) for column in columns
        )
        + " |"
        for name in names
    ]
    if dropped > 1:
        gap = f"| ... {dropped} more between ... |" + " |" * (len(columns) + 1)
        rows = [*rows[:_EXTREMES], gap, *rows[-_EXTREMES:]]
    return [
        "",
        f"By category, the best and the worst by {key}:" if dropped > 1 else f"By {key}:",
        "",
        "| category | training images | " + " | ".join(columns) + " |",
        "|---|" + "---|" * (len(columns) + 1),
        *rows,
    ]


def _champion(version: Version, content: Content) -> list[str]:
    mine = [m for m in content.moves if version.version in (m.version, m.before)]
    if not mine:
        return []
    lines = []
    for move in mine:
        at = datetime.fromtimestamp(move.time_ms / 1000, tz=UTC)
        became = f"version {move.version or 'none'} became the {CHAMPION}"
        reason = f" Because: {move.reason}" if move.reason else ""
        lines.append(f"- {at:%Y-%m-%d %H:%M} UTC, {move.how}: {became}; {move.text}.{reason}")
    return ["## As champion", "", *lines]


def _use(version: Version, model: AnyModel) -> list[str]:
    task = "" if model.task == "instance" else "DeepLabV3+ "
    return [
        "## Use",
        "",
        "`MLFLOW_TRACKING_URI` says where the registry is: http://HOST:PORT, or sqlite:///FILE.",
        "",
        "In Python, where its requirements.txt is installed; no GPU and no Ray is needed:",
        "",
        "```python",
        "import mlflow",
        "",
        f'model = mlflow.pyfunc.load_model("{version.uri}")',
        'rows = model.predict(["photo.jpg", encoded_bytes, array])',
        "```",
        "",
        "On a command line, beside this package:",
        "",
        "```",
        f"python jobs/predict.py --model {version.uri} --images photos --out out",
        f"python jobs/models.py evaluate {version.uri} --data SHARDS_OF_A_SPLIT",
        f"mlflow models serve -m {version.uri} --env-manager local",
        "```",
        "",
        f"To start another training from it, add to any {task}job of the same architecture:",
        "",
        "```",
        f"--model.weights {version.uri}",
        "```",
    ]


def _limits(content: Content) -> list[str]:
    recipe = content.recipe
    seen = content.trained_on.category_images if content.trained_on else {}
    first = content.evaluations[0]
    key = deciding(first, first)
    names = [category.name for category in content.categories]
    by_category = of_categories(first, key)
    unmeasured = [n for n in names if by_category and math.isnan(by_category.get(n, math.nan))]
    few = [name for name in names if name in seen and seen[name] < _FEW_IMAGES]
    sizes = [first.metrics.get(f"{key}_{size}", math.nan) for size in ("small", "large")]
    lines = [
        f"It knows its {len(names)} categories and nothing else.",
        f"Its numbers hold for photos like those that they were measured on "
        f"({first.evaluated_on}); others were not tried.",
        f"Photos are scaled to a short edge of {recipe.data.test_short_edge_px} px, a long edge of "
        f"at most {recipe.data.long_edge_px} px.",
        "Pixels are taken as stored: an EXIF orientation is not applied.",
    ]
    if all(map(math.isfinite, sizes)):
        lines.append(f"Small objects reach {key} {sizes[0]:.4f}, large ones {sizes[1]:.4f}.")
    if few:
        lines.append(f"Seen in fewer than {_FEW_IMAGES} training images: {_listed(few)}.")
    if unmeasured:
        lines.append(f"Without a number, as the measured images show none: {_listed(unmeasured)}.")
    if not recipe.tracking.license:
        lines.append(
            "No license was stated: whoever passes it on must look at the terms of its data and of "
            "the weights that it starts from."
        )
    return ["## Limits", "", *(f"- {line}" for line in lines)]


def _listed(names: Sequence[str], most: int = 20) -> str:
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _environment(origin: Origin) -> list[str]:
    here = origin.environment
    packages = ", ".join(f"{name} {version}" for name, version in here.packages.items())
    return [
        "## Environment",
        "",
        f"Registered with Python {here.python} on {here.system}; {packages}. What it needs to "
        f"predict is in requirements.txt; all that was installed is in that of run "
        f"{origin.run_id}.",
    ]
