"""One frozen, typed recipe describes one run.

A job derives its recipe with `dataclasses.replace`; the command line overrides single fields
(pipeline/cli.py). The resolved recipe is saved with the run, every checkpoint and the registered
model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal

from typing_extensions import TypeVar

from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.semantic import DeepLabConfig
from pipeline.errors import RecipeError
from pipeline.recipe_json import from_plain, leaves, to_plain
from pipeline.recipe_rules import holds_secret, raise_all

AnyModel = MaskRCNNConfig | DeepLabConfig

Model_co = TypeVar("Model_co", bound=AnyModel, covariant=True, default=AnyModel)
"""The kind of model of a recipe: whoever derives a job from another one knows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColorConfig:
    """How far training changes the colors of an image, on the device; 0 leaves them.

    Each sample has its own changes, in this order.
    """

    brightness: float = 0.0
    """Values are multiplied by 1 - x to 1 + x; 0.4 is usual, for the next two as well."""
    contrast: float = 0.0
    """Distances from the image's mean are multiplied by 1 - x to 1 + x."""
    saturation: float = 0.0
    """Distances from gray are multiplied by 1 - x to 1 + x."""
    hue: float = 0.0
    """The circle of hues is turned by up to this share, either way; 0.1 is usual."""

    @property
    def is_on(self) -> bool:
        """Whether anything changes."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0

    def __post_init__(self) -> None:
        factors = (self.brightness, self.contrast, self.saturation)
        raise_all(
            "color",
            [
                (
                    min(factors) >= 0 and max(factors) < 1,
                    f"brightness, contrast and saturation must be in [0, 1), got {factors}",
                ),
                (0 <= self.hue <= 0.5, f"hue must be in [0, 0.5], got {self.hue}"),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which shards, and how an image is prepared."""

    root: str = "data/shards"
    """Folder or URI with one folder of shards for each split, as jobs/ingest.py writes them."""
    train_split: str = "train2017"
    """Folder under root to train on."""
    val_split: str = "val2017"
    """Folder under root to evaluate on."""
    short_edge_px: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Instance: training draws the short edge from these (detectron2)."""
    test_short_edge_px: int = 800
    """Instance: the short edge in evaluation and inference."""
    long_edge_px: int = 1333
    """Instance: the long edge is at most this; then the short edge is shorter than drawn."""
    scale_range: tuple[float, float] = (0.75, 2.0)
    """Semantic: training draws a factor between these by which an image is resized (sec. 4.2)."""
    crop_px: int = 832
    """Semantic: side of the square that is cut out of it; smaller images are padded with void."""
    test_size_hw: tuple[int, int] | None = None
    """Semantic: images are resized to this height and width in evaluation and inference; None
    leaves them as they are. Label maps always have the image's own size."""
    color: ColorConfig = field(default_factory=ColorConfig)
    flip_probability: float = 0.5
    """Chance of a horizontal flip."""
    repeat_threshold: float = 0.0
    """Images with a category in a smaller share of the images are trained more often; 0 trains each
    once an epoch (LVIS: 0.001)."""
    decode_in: Literal["trainer", "tasks"] = "trainer"
    """Decode in the trainer's collate threads, or in Ray Data tasks that CPU-only nodes can run."""
    prefetch_batches: int = 2
    """Batches prepared ahead on each worker."""

    def __post_init__(self) -> None:
        edges = (*self.short_edge_px, self.test_short_edge_px)
        raise_all(
            "data",
            [
                (len(self.short_edge_px) > 0, "short_edge_px needs at least one value"),
                (min(edges) >= 32, f"an image edge must be at least 32 px, got {min(edges)}"),
                (self.crop_px >= 32, f"crop_px must be at least 32, got {self.crop_px}"),
                (
                    0 < self.scale_range[0] <= self.scale_range[1],
                    f"scale_range must be positive and not fall, got {self.scale_range}",
                ),
                (
                    self.test_size_hw is None or min(self.test_size_hw) >= 32,
                    f"test_size_hw must be at least 32 32, or None, got {self.test_size_hw}",
                ),
                (
                    self.long_edge_px >= max(edges),
                    f"long_edge_px {self.long_edge_px} is below a short edge of {max(edges)}",
                ),
                (
                    0 <= self.flip_probability <= 1,
                    f"flip_probability must be in [0, 1], got {self.flip_probability}",
                ),
                (
                    0 <= self.repeat_threshold < 1,
                    f"repeat_threshold must be in [0, 1), got {self.repeat_threshold}",
                ),
                (
                    self.prefetch_batches >= 1,
                    f"prefetch_batches must be at least 1, got {self.prefetch_batches}",
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer, with linear warm-up and a schedule counted in its steps."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD reproduces the paper; AdamW learns faster in short runs from scratch."""
    global_batch: int = 16
    """Images in one optimizer step, over all workers and accumulated passes."""
    lr_per_image: float = 0.02 / 16
    """Learning rate of one image; the rate is this times global_batch (linear scaling rule)."""
    momentum: float = 0.9
    """Momentum of SGD; AdamW keeps torch's betas."""
    weight_decay: float = 1e-4
    """Not applied to normalization layers."""
    steps: int = 90_000
    """Optimizer steps of the whole run."""
    warmup_steps: int = 1000
    """The rate rises linearly over these."""
    warmup_factor: float = 1e-3
    """Share of the rate at step 0."""
    schedule: Literal["multistep", "poly", "cosine"] = "multistep"
    """How the rate falls: in steps, as instance models train; as (1 - step / steps) to a power, as
    semantic ones do; or after warm-up along half a cosine to 0, for short runs."""
    decay_at: tuple[int, ...] = (60_000, 80_000)
    """Multistep: steps at which the rate is multiplied by decay_factor."""
    decay_factor: float = 0.1
    """Multistep: see decay_at."""
    poly_power: float = 0.9
    """Poly: the power (sec. 4.2: 0.9)."""
    clip_norm: float | None = None
    """Gradients are scaled down to this norm; None leaves them."""
    amp: bool = True
    """Mixed precision (bfloat16) where the device is a GPU."""

    @property
    def lr(self) -> float:
        """The learning rate after warm-up."""
        return self.lr_per_image * self.global_batch

    def __post_init__(self) -> None:
        raise_all(
            "optim",
            [
                (
                    self.global_batch >= 1,
                    f"global_batch must be at least 1, got {self.global_batch}",
                ),
                (self.lr_per_image > 0, f"lr_per_image must be positive, got {self.lr_per_image}"),
                (0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}"),
                (
                    self.weight_decay >= 0,
                    f"weight_decay may not be negative, got {self.weight_decay}",
                ),
                (self.steps >= 1, f"steps must be at least 1, got {self.steps}"),
                (
                    self.warmup_steps >= 0,
                    f"warmup_steps may not be negative, got {self.warmup_steps}",
                ),
                (
                    0 < self.warmup_factor <= 1,
                    f"warmup_factor must be in (0, 1], got {self.warmup_factor}",
                ),
                (self.poly_power > 0, f"poly_power must be positive, got {self.poly_power}"),
                (
                    list(self.decay_at) == sorted(self.decay_at),
                    f"decay_at must rise, got {self.decay_at}",
                ),
                (
                    self.clip_norm is None or self.clip_norm > 0,
                    f"clip_norm must be positive or None, got {self.clip_norm}",
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleConfig:
    """How many machines do the work; nothing here changes which images a step trains."""

    num_workers: int = 2
    """Ray Train workers; 0 trains in this process, without Ray Train."""
    use_gpu: bool = False
    """One GPU for each worker."""
    cpus_per_worker: float = 1.0
    """CPUs that each worker reserves; leave at least one CPU of every node to Ray Data."""
    images_per_microbatch: int = 2
    """Images of one forward and backward pass; the rest of a worker's batch is accumulated."""
    threads_per_worker: int = 0
    """Torch threads of each worker; 0 leaves torch's own choice."""
    max_failures: int = 3
    """Restarts after a lost worker or node, each from the last checkpoint."""

    def __post_init__(self) -> None:
        raise_all(
            "scale",
            [
                (self.num_workers >= 0, f"num_workers may not be negative, got {self.num_workers}"),
                (
                    self.images_per_microbatch >= 1,
                    f"images_per_microbatch must be at least 1, got {self.images_per_microbatch}",
                ),
                (
                    self.cpus_per_worker > 0,
                    f"cpus_per_worker must be positive, got {self.cpus_per_worker}",
                ),
                (
                    self.max_failures >= 0,
                    f"max_failures may not be negative, got {self.max_failures}",
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When everything that a resume needs is written."""

    every_steps: int = 1000
    """Optimizer steps between two checkpoints."""
    keep: int = 2
    """The newest so many stay."""

    def __post_init__(self) -> None:
        raise_all(
            "checkpoint",
            [
                (self.every_steps >= 1, f"every_steps must be at least 1, got {self.every_steps}"),
                (self.keep >= 1, f"keep must be at least 1, got {self.keep}"),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What is measured after training, and perhaps while it goes on."""

    every_checkpoint: bool = False
    """Measure at each checkpoint too, each worker its share of the images; a sweep does so."""
    max_images: int | None = None
    """Only the first so many images of the split; None takes all."""
    images_per_batch: int = 1
    """Images of one forward pass."""
    paste_bytes: int = 64 * 2**20
    """Instance: masks are pasted in chunks of at most so many bytes."""
    boxes: Literal["predicted", "truth"] = "predicted"
    """Instance: judge what the model finds, or its masks alone, drawn in the boxes of the truth."""
    dilation_ratio: float | None = None
    """Instance: width of boundary AP's band in image diagonals; None is boundary-iou-api's: 0.005
    for Cityscapes, 0.02 for all others."""
    submission: bool = False
    """Instance: write what was found in a split of Cityscapes in its official format too."""
    window_px: int | None = None
    """Semantic: look through square windows of this side, for images that do not fit into memory;
    None looks at the whole image at once."""
    window_overlap: float = 0.25
    """Semantic: neighboring windows share at least this part of their side; logits are averaged."""
    radii_px: tuple[int, ...] = (3, 5, 9, 12)
    """Semantic: distances within which the boundary F-score takes outlines for the same."""
    absent: Literal["one", "skip"] = "one"
    """Semantic: an image in which a class has no outline counts as F = 1, as in published numbers,
    or not at all."""

    def __post_init__(self) -> None:
        raise_all(
            "evaluation",
            [
                (
                    self.max_images is None or self.max_images >= 1,
                    f"max_images must be at least 1 or None, got {self.max_images}",
                ),
                (
                    self.images_per_batch >= 1,
                    f"images_per_batch must be at least 1, got {self.images_per_batch}",
                ),
                (
                    self.dilation_ratio is None or 0 < self.dilation_ratio < 1,
                    f"dilation_ratio must be between 0 and 1, or None, got {self.dilation_ratio}",
                ),
                (
                    self.window_px is None or self.window_px >= 32,
                    f"window_px must be at least 32 or None, got {self.window_px}",
                ),
                (
                    0 <= self.window_overlap < 1,
                    f"window_overlap must be in [0, 1), got {self.window_overlap}",
                ),
                (
                    len(self.radii_px) > 0 and min(self.radii_px) >= 1,
                    f"radii_px needs whole numbers from 1 on, got {self.radii_px}",
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where MLflow writes, and under which name the model is registered."""

    uri: str = ""
    """Tracking server; "" is what MLFLOW_TRACKING_URI names, and where that is not set an SQLite
    file and local artifacts under the storage folder."""
    experiment: str = "boundary-squeeze"
    """MLflow experiment."""
    model_name: str = ""
    """Registered model; "" registers nothing."""
    license: str = ""
    """Under which the registered weights may be used; the model card says it."""
    log_every: int = 20
    """Optimizer steps between two progress lines and metric points."""

    def __post_init__(self) -> None:
        raise_all(
            "tracking",
            [
                (self.log_every >= 1, f"log_every must be at least 1, got {self.log_every}"),
                (
                    not holds_secret(self.uri),
                    "uri holds a password, which the recipe would carry into logs and checkpoints; "
                    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or give the whole "
                    'URI as MLFLOW_TRACKING_URI and leave --tracking.uri ""',
                ),
            ],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Generic[Model_co]):
    """A complete run."""

    name: str
    """Names the run: the same name with the same recipe resumes."""
    storage: str = "runs"
    """Folder or URI for checkpoints, results and the embedded tracking store."""
    seed: int = 0
    """Every random choice comes from it."""
    # mypy has no default that holds for every value of a type variable.
    model: Model_co = field(default_factory=MaskRCNNConfig)  # type: ignore[assignment]
    """What is trained."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        workers = max(self.scale.num_workers, 1)
        batch = self.optim.global_batch
        divisors = [n for n in range(1, batch + 1) if batch % n == 0]
        raise_all(
            f"recipe {self.name}",
            [
                (
                    bool(self.name) and all(c.isalnum() or c in "._-" for c in self.name),
                    f"name may hold letters, digits, '.', '_' and '-', got {self.name!r}",
                ),
                (0 <= self.seed < 2**31, f"seed must be in 0..2^31-1, got {self.seed}"),
                (
                    batch % workers == 0,
                    f"scale.num_workers {workers} does not divide optim.global_batch {batch}; "
                    f"take one of {', '.join(map(str, divisors))}",
                ),
            ],
        )


def reads_masks(model: AnyModel) -> bool:
    """Tell whether a model's targets need whole masks in its batches."""
    return isinstance(model, MaskRCNNConfig) and model.mask_head.targets.source == "roi"


def to_json(recipe: Recipe) -> str:
    """Write a recipe as JSON that `from_json` reads back to an equal recipe."""
    return json.dumps(to_plain(recipe), indent=2)


def from_json(text: str) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: it is no JSON, or fields are unknown, missing, wrongly typed or break a rule;
            all of them in one message.
    """
    try:
        plain = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(f"the recipe is not valid JSON: {error}") from error
    return from_dict(plain)


def from_dict(plain: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested dicts and lists, as JSON holds them.

    Raises:
        RecipeError: see `from_json`.
    """
    problems: list[str] = []
    recipe = from_plain(Recipe, plain, problems=problems)
    if problems or not isinstance(recipe, Recipe):
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise RecipeError(f"{count} in the recipe:" + "".join(f"\n  {p}" for p in problems))
    return recipe


def fingerprint(recipe: Recipe) -> str:
    """Return 12 hex digits that every field takes part in."""
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
