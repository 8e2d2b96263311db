"""One frozen, typed recipe describes one run.

A job derives its recipe with `dataclasses.replace`; the command line overrides single fields
(pipeline/cli.py). The resolved recipe is saved with the run, every checkpoint and the registered
model.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, cast, get_args
from urllib.parse import parse_qsl, urlsplit

from annotated_types import Interval, MinLen
from typing_extensions import TypeVar

from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.models import ModelConfig
from bsm.configs.refine import RefinerConfig
from bsm.configs.rules import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
)
from bsm.configs.semantic import DeepLabConfig
from pipeline.errors import RecipeError
from pipeline.recipe_data import ColorConfig, DataConfig, EdgePx, RecipePart, RobustConfig
from pipeline.recipe_json import find_unusable, from_plain, leaves, to_plain

__all__ = [
    "OLD_NAMES",
    "BestMetric",
    "CheckpointConfig",
    "ColorConfig",
    "DataConfig",
    "EvaluationConfig",
    "ModelTask",
    "Model_co",
    "OptimConfig",
    "Recipe",
    "RecipePart",
    "RobustConfig",
    "ScaleConfig",
    "TrackingConfig",
    "differences",
    "fingerprint",
    "from_dict",
    "from_json",
    "raise_problems",
    "reads_masks",
    "rename_old_fields",
    "to_json",
]

ModelTask = Literal["instance", "semantic", "refine"]
"""What a model does: detect objects with masks, label every pixel, or refine given masks."""

BestMetric = Literal[
    "",
    "mask_ap",
    "boundary_ap",
    "box_ap",
    "miou",
    "boundary_f_3px",
    "mask_iou",
    "boundary_iou",
    "val_loss",
]
"""Metrics that choose a checkpoint: the lowest val_loss, or the highest of any other."""

Model_co = TypeVar("Model_co", bound=ModelConfig, covariant=True, default=ModelConfig)
"""The model class of a recipe, known to jobs that derive a recipe from another one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig(RecipePart):
    """The optimizer, linear warm-up and the learning rate schedule, counted in steps."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD reproduces the paper; AdamW learns faster in short runs from scratch."""
    global_batch: PositiveInt = 16
    """Images per optimizer step, over all workers and accumulated microbatches."""
    lr_per_image: PositiveFloat = 0.02 / 16
    """Learning rate per image, multiplied by global_batch (linear scaling rule)."""
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Momentum of SGD; AdamW keeps torch's betas."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay; normalization layers have none."""
    decay_biases: bool = True
    """Let biases decay too, as in detectron2; False spares them and all that transformers spare:
    scales, position embeddings and extra tokens."""
    backbone_lr_factor: PositiveFloat = 1.0
    """Learning rate of the backbone as a multiple of the others'."""
    layer_decay: PositiveFraction = 1.0
    """Multiply the learning rate by this from each layer of the backbone to the one before, the
    last one included; for transformers (ViTDet: 0.7 for a ViT-B, 0.8 for a ViT-L)."""
    steps: PositiveInt = 90_000
    """Optimizer steps of the whole run."""
    warmup_steps: NonNegativeInt = 1000
    """Steps of linear warm-up."""
    warmup_factor: PositiveFraction = 1e-3
    """Share of the learning rate at step 0."""
    schedule: Literal["multistep", "poly", "cosine"] = "multistep"
    """Learning rate after warm-up: in steps, as for instance models; (1 - step / steps) to a power,
    as for semantic models; or half a cosine to 0, for short runs."""
    decay_at: tuple[int, ...] = (60_000, 80_000)
    """Multistep: steps at which the learning rate is multiplied by decay_factor."""
    decay_factor: float = 0.1
    """Multistep: factor at each of these steps."""
    poly_power: PositiveFloat = 0.9
    """Poly: the power (sec. 4.2: 0.9)."""
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Average the weights over the steps with this decay, such as 0.999; the average is evaluated
    and registered. 0 keeps the last weights."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradients; None does not clip them."""
    amp: bool = True
    """Train in mixed precision (bfloat16) on GPUs."""
    compile: bool = False
    """Compile losses and gradients by torch.compile, for GPUs; it takes minutes at the start."""

    @property
    def lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr_per_image * self.global_batch

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check the order of the decay steps."""
        if list(self.decay_at) != sorted(self.decay_at):
            yield "decay_at", f"must not decrease, got {self.decay_at}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleConfig(RecipePart):
    """The workers and their resources; nothing here changes which images a step trains."""

    num_workers: NonNegativeInt = 2
    """Ray Train workers; 0 trains in this process, without Ray Train."""
    use_gpu: bool = False
    """Give each worker one GPU."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs reserved by each worker; leave at least one CPU of every node to Ray Data."""
    images_per_microbatch: PositiveInt | Literal["auto"] = 2
    """Images per forward and backward pass; a worker accumulates the rest of its batch. "auto" is
    the most that fit into a GPU, found once at the start and saved in the run's recipe; on a CPU as
    many as have the pixels of two images of 1333 x 800."""
    activation_checkpointing: bool = False
    """Recompute the backbone's activations in the backward pass instead of keeping them: the same
    gradients with less memory, in more time."""
    threads_per_worker: int = 0
    """Torch threads of each worker; 0 keeps torch's default."""
    max_failures: NonNegativeInt = 3
    """Restarts after a lost worker or node, each from the last checkpoint."""

    @property
    def microbatch(self) -> int:
        """images_per_microbatch as a number.

        Raises:
            RecipeError: it is "auto", and no run has found it yet.
        """
        if self.images_per_microbatch == "auto":
            raise RecipeError(
                'scale.images_per_microbatch is "auto", which only a training run finds. Type a '
                "number: --scale.images-per-microbatch 2"
            )
        return self.images_per_microbatch


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig(RecipePart):
    """Checkpoints, from which a run resumes."""

    every_steps: PositiveInt = 1000
    """Optimizer steps between two checkpoints."""
    keep: PositiveInt = 2
    """Number of recent checkpoints to keep."""
    best_metric: BestMetric = ""
    """Evaluate each checkpoint, also keep the one with the best value of this metric, and take it
    for the run's results and the registered model. "" takes the last."""
    patience: NonNegativeInt = 0
    """Stop after this many evaluations in a row without a better best_metric; 0 never stops. While
    a score is 0, evaluations do not count."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that there is a metric to be patient with."""
        if self.patience and not self.best_metric:
            yield "patience", "needs best_metric, the metric that must get better"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig(RecipePart):
    """Evaluation after training, and optionally at each checkpoint."""

    every_checkpoint: bool = False
    """Also evaluate at each checkpoint, split over the workers; sweeps do."""
    losses: bool = False
    """At each checkpoint, also compute the losses of training on the evaluated images, without
    augmentation; they rise where the model overfits."""
    max_images: PositiveInt | None = None
    """Evaluate only the first images of the split; None takes all."""
    images_per_batch: PositiveInt = 1
    """Images per forward pass."""
    paste_bytes: int = 64 * 2**20
    """Instance and refine: memory limit in bytes for masks at image size."""
    flip: bool = False
    """Instance and semantic: predict the mirror image too, and merge both."""
    scales: Annotated[tuple[Annotated[float, Interval(ge=0.1, le=10)], ...], MinLen(1)] = (1.0,)
    """Instance and semantic: predict at each of these multiples of the test size, and merge."""
    boxes: Literal["predicted", "truth"] = "predicted"
    """Instance: evaluate predicted boxes and masks, or only the masks, in ground truth boxes."""
    dilation_ratio: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """Instance and refine: width of the band of boundary AP and boundary IoU in image diagonals;
    None is boundary-iou-api's: 0.005 for Cityscapes, 0.02 for all others."""
    submission: bool = False
    """Instance: also write Cityscapes detections in the official format."""
    window_px: EdgePx | None = None
    """Semantic: side of the sliding window, for images that do not fit into memory; None predicts
    the whole image at once."""
    window_overlap: Annotated[float, Interval(ge=0, lt=1)] = 0.25
    """Semantic: least overlap of neighboring windows as a share of their side; logits are
    averaged."""
    radii_px: Annotated[tuple[PositiveInt, ...], MinLen(1)] = (3, 5, 9, 12)
    """Semantic: distances within which the boundary F-score matches outlines."""
    absent: Literal["one", "skip"] = "one"
    """Semantic: an image where a class has no outline counts as F = 1, as in published numbers, or
    is skipped."""

    @property
    def has_views(self) -> bool:
        """Whether several views of an image are merged."""
        return self.flip or self.scales != (1.0,)

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that views are merged only where there is something to merge."""
        if self.has_views and self.boxes == "truth":
            yield "boxes", '"truth" has no boxes to merge; leave out flip and scales'
        if self.has_views and self.window_px is not None:
            yield "window_px", "windows cannot be merged; leave out flip and scales"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig(RecipePart):
    """MLflow's tracking server, experiment and registered model."""

    uri: str = ""
    """Tracking server; "" is MLFLOW_TRACKING_URI, or without it an SQLite file and local artifacts
    under the storage folder."""
    experiment: str = "boundary-squeeze"
    """MLflow experiment."""
    model_name: str = ""
    """Registered model; "" registers nothing."""
    license: str = ""
    """License of the registered weights, shown in the model card."""
    log_every: PositiveInt = 20
    """Optimizer steps between two progress lines and metric points."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that logs and checkpoints will hold no password."""
        if _has_secret(self.uri):
            yield (
                "uri",
                "contains a password, which would end up in logs and checkpoints; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or set the whole URI as "
                'MLFLOW_TRACKING_URI and leave --tracking.uri ""',
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(RecipePart, Generic[Model_co]):
    """A complete run."""

    name: str
    """Name of the run; the same name with the same recipe resumes it."""
    storage: str = "runs"
    """Folder or URI for checkpoints, results and the embedded tracking store."""
    weights_mirror: str = ""
    """Folder or URL to take published weights from instead of the internet; "" is that of
    BSM_WEIGHTS_MIRROR, or none. It holds files as HOST/PATH (docs/weights.md)."""
    seed: Annotated[int, Interval(ge=0, lt=2**31)] = 0
    """Seed of every random choice."""
    # mypy has no default that holds for every value of a type variable.
    model: Model_co = field(default_factory=MaskRCNNConfig)  # type: ignore[assignment]
    """The model to train."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def evaluates_checkpoints(self) -> bool:
        """Whether the metrics of each checkpoint are computed."""
        return self.evaluation.every_checkpoint or bool(self.checkpoint.best_metric)

    @property
    def computes_validation_losses(self) -> bool:
        """Whether the losses on the validation split are computed at each checkpoint."""
        return self.evaluation.losses or self.checkpoint.best_metric == "val_loss"

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check the name, and that the workers share a batch evenly."""
        if not self.name or not all(c.isalnum() or c in "._-" for c in self.name):
            yield "name", f"may hold letters, digits, '.', '_' and '-', got {self.name!r}"
        if self.scale.images_per_microbatch == "auto" and _has_batch_statistics(self.model):
            yield (
                "scale.images_per_microbatch",
                '"auto" would change what this model learns: its batch norms take their statistics '
                "from a microbatch. Give a number, or take backbone.norm group",
            )
        if _has_secret(self.weights_mirror):
            yield "weights_mirror", "contains a password, which would end up in logs"
        workers, batch = max(self.scale.num_workers, 1), self.optim.global_batch
        if batch % workers:
            # All divisors of an absurd batch would take minutes to find.
            divisors = [str(n) for n in range(1, min(batch, 1024) + 1) if batch % n == 0]
            yield (
                "scale.num_workers",
                f"{workers} does not divide optim.global_batch {batch}; take one of "
                f"{', '.join(divisors)}",
            )


OLD_NAMES = {
    "model.geometry": "box_convention",
    "model.mask_head.squeeze.wiring": "variant",
    "model.head.squeeze.wiring": "variant",
    "scale.images_per_pass": "images_per_microbatch",
    "evaluation.images_per_pass": "images_per_batch",
}
"""Renamed fields by their old path. Recipes of earlier runs and registered models hold these."""

_MODELS = {kind.task: kind for kind in get_args(ModelConfig)}


def reads_masks(model: ModelConfig) -> bool:
    """Check whether a model trains on whole masks in the batches."""
    match model:
        case MaskRCNNConfig():
            return model.mask_head.targets.source == "roi"
        case RefinerConfig():
            return True
        case _:
            return False


def _has_batch_statistics(model: ModelConfig) -> bool:
    """Check whether a model has norms whose statistics are those of the images of a pass."""
    norm = model.backbone.norm
    match model:
        case DeepLabConfig():
            return norm != "group"  # its head has batch norms where the backbone's are frozen
        case MaskRCNNConfig():
            return norm in {"batch", "sync"} or model.mask_head.squeeze.norm == "batch"
        case _:
            return norm in {"batch", "sync"}


def to_json(recipe: Recipe) -> str:
    """Write a recipe as JSON; `from_json` reads it back."""
    return json.dumps(to_plain(recipe), indent=2)


def from_json(text: str | bytes) -> Recipe:
    """Read a recipe; bytes may be in any encoding of JSON, with a byte-order mark or without.

    Raises:
        RecipeError: the text is not JSON, or fields are unknown, missing, mistyped or break a
            rule; all of them in one message.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"the recipe is not valid JSON: {error}") from error
    return from_dict(plain)


def from_dict(plain: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested dicts and lists, as JSON holds them.

    Raises:
        RecipeError: see `from_json`.
    """
    if not isinstance(plain, dict):
        raise RecipeError(f"the recipe needs an object with fields, got {plain!r:.60}")
    raise_problems(find_unusable(plain))
    values = copy.deepcopy(plain)
    problems = rename_old_fields(values)
    model, tag = values.get("model"), MaskRCNNConfig.task
    if isinstance(model, dict) and (tag := model.pop("task", tag)) not in tuple(_MODELS):
        choices = ", ".join(map(repr, _MODELS))
        problems.append(f"model.task: must be one of {choices}, got {tag!r}")
        tag = MaskRCNNConfig.task
        del values["model"]
    kind: Any = Recipe
    recipe, more = from_plain(kind[_MODELS[tag]], values)
    raise_problems(problems + more)
    return cast(Recipe, recipe)


def raise_problems(problems: Sequence[str]) -> None:
    """Raise a RecipeError that lists the problems of a recipe, if there are any."""
    if problems:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise RecipeError(f"{count} in the recipe:" + "".join(f"\n  {p}" for p in problems))


def rename_old_fields(plain: dict[str, Any]) -> list[str]:
    """Rename fields in place, and list those that have a value under both names."""
    problems = []
    for path, new in OLD_NAMES.items():
        *parents, old = path.split(".")
        part: Any = plain
        for name in parents:
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict) and old in part:
            if new in part:
                problems.append(f"{path}: is the old name of {new}, which has a value too; drop it")
            part[new] = part.pop(old)
    return problems


def fingerprint(recipe: Recipe) -> str:
    """Return 12 hex digits of a hash over all fields."""
    canonical = json.dumps(to_plain(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def differences(before: Recipe, after: Recipe) -> list[str]:
    """List the fields that both have and that differ, such as "optim.steps: 100 -> 200"."""
    old, new = leaves(to_plain(before)), leaves(to_plain(after))
    return [
        f"{name}: {json.dumps(old[name])} -> {json.dumps(new[name])}"
        for name in old
        if name in new and old[name] != new[name]
    ]


def _has_secret(uri: str) -> bool:
    """Check whether a URI has a password, or a parameter named like a secret."""
    parts = urlsplit(uri)
    names = [name.lower() for name, _ in parse_qsl(parts.query)]
    secret = ("password", "secret", "token", "key")
    return parts.password is not None or any(part in name for name in names for part in secret)
