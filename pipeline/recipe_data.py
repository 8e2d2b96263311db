"""The part of a recipe about data: the shards, and how an image is prepared and augmented."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypeAlias

from annotated_types import Ge, Interval, MinLen

from bsm.configs.rules import Config, Fraction, PositiveFloat, PositiveInt
from pipeline.errors import RecipeError

EdgePx: TypeAlias = Annotated[int, Ge(32)]
_Jitter: TypeAlias = Annotated[float, Interval(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipePart(Config):
    """Base of all parts of a recipe."""

    error_type: ClassVar[type[Exception]] = RecipeError


@dataclass(frozen=True, kw_only=True, slots=True)
class ColorConfig(RecipePart):
    """Color jitter in training, on the device; 0 turns a change off.

    Each sample draws its own changes, in this order.
    """

    brightness: _Jitter = 0.0
    """Multiply values by 1 - x to 1 + x; 0.4 is usual, for contrast and saturation as well."""
    contrast: _Jitter = 0.0
    """Multiply distances from the image's mean by 1 - x to 1 + x."""
    saturation: _Jitter = 0.0
    """Multiply distances from gray by 1 - x to 1 + x."""
    hue: Annotated[float, Interval(ge=0, le=0.5)] = 0.0
    """Rotate hues by up to this share of the color circle, either way; 0.1 is usual."""

    @property
    def is_on(self) -> bool:
        """Whether anything changes."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RobustConfig(RecipePart):
    """Damage to photos in training, on the device; each is the share of the samples that get it.

    Each sample draws which it gets and how strong, in this order; targets stay as they are.
    """

    gray: Fraction = 0.0
    """Turn gray."""
    blur: Fraction = 0.0
    """Blur by a Gaussian of 0.1 to 2 pixels."""
    jpeg: Fraction = 0.0
    """Compress as JPEG, with a quality of 20 to 90."""
    cutout: Fraction = 0.0
    """Hide a rectangle of 2 to 15 % of the photo."""

    @property
    def is_on(self) -> bool:
        """Whether anything changes."""
        return max(self.gray, self.blur, self.jpeg, self.cutout) > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(RecipePart):
    """The shards, and how an image is prepared."""

    root: str = "data/shards"
    """Folder or URI with one folder of shards per split, as written by jobs/ingest.py."""
    train_split: str = "train2017"
    """Folder under root to train on."""
    val_split: str = "val2017"
    """Folder under root to evaluate on."""
    short_edge_px: Annotated[tuple[EdgePx, ...], MinLen(1)] = (640, 672, 704, 736, 768, 800)
    """Instance and refine: training draws the short edge from these (detectron2)."""
    test_short_edge_px: EdgePx = 800
    """Instance: short edge in evaluation and inference."""
    long_edge_px: EdgePx = 1333
    """Instance and refine: limit of the long edge; larger images get a shorter short edge."""
    scale_jitter: tuple[PositiveFloat, PositiveFloat] | None = None
    """Instance and refine: training resizes by a factor drawn from this range and crops a square of
    crop_px; at a factor of 1 the long edge fits the square. Large-scale jitter is 0.1 to 2.0. None
    resizes by the short edge, without a crop."""
    copy_paste: Fraction = 0.0
    """Instance and refine: probability that objects of another sample are pasted into an image."""
    scale_range: tuple[PositiveFloat, PositiveFloat] = (0.75, 2.0)
    """Semantic: training resizes an image by a factor drawn from this range (sec. 4.2)."""
    crop_px: EdgePx = 832
    """Side of the square crop of semantic models and of scale_jitter; smaller images are padded,
    with void in label maps."""
    test_size_hw: tuple[EdgePx, EdgePx] | None = None
    """Semantic: height and width that images are resized to in evaluation and inference; None keeps
    their size. Label maps always have the image's own size."""
    color: ColorConfig = field(default_factory=ColorConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    flip_probability: Fraction = 0.5
    """Probability of a horizontal flip."""
    repeat_threshold: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Repeat images with a category in a smaller share of the images; 0 trains each image once per
    epoch (LVIS: 0.001)."""
    decode_in: Literal["trainer", "tasks"] = "trainer"
    """Decode in the trainer's collate threads, or in Ray Data tasks that CPU-only nodes can run."""
    prefetch_batches: PositiveInt = 2
    """Batches prepared ahead on each worker."""

    @property
    def edits_masks(self) -> bool:
        """Whether a sample's objects change by more than a resize and a flip."""
        return self.scale_jitter is not None or self.copy_paste > 0

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check the order of edges and of the ranges of scales."""
        short = max(*self.short_edge_px, self.test_short_edge_px, 0)
        if self.long_edge_px < short:
            yield (
                "long_edge_px",
                f"must be at least the short edge {short}, got {self.long_edge_px}",
            )
        for name in ("scale_range", "scale_jitter"):
            limits = getattr(self, name) or ()
            if list(limits) != sorted(limits):
                yield name, f"must not decrease, got {limits}"
