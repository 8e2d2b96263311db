"""What a model reaches on a split: numbers by name, the same as text, and what it found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import nn

from pipeline.evaluation.lvis import LvisMetrics
from pipeline.evaluation.mask_quality import MaskQuality
from pipeline.evaluation.metrics import MetricName, Metrics
from pipeline.evaluation.split_reader import Piece

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a model reaches on a split."""

    metrics: dict[str, float]
    """Of instances mask_ap, mask_ap50, ..., boundary_ap, ..., box_ap, ..., with the boxes of the
    truth mask_iou, boundary_iou, ... too; of label maps miou, boundary_f_3px, ...; of both images,
    seconds, images_per_s, and inference_ms_p50, _p90 and _p99, which are missing where too few
    images were looked at. NaN where the split has no such objects."""
    text: str
    """The numbers as tables, for a terminal."""
    per_category: dict[str, dict[str, float]] = field(default_factory=dict)
    """mask_ap, boundary_ap and box_ap, or iou, boundary_f_3px, ..., by the category's name."""
    files: dict[str, str] = field(default_factory=dict)
    """What was found, by kind: detections (a COCO results file), submission (a folder in the format
    of Cityscapes) or label_maps (a folder of PNGs)."""
    notices: tuple[str, ...] = ()
    """What who reads the numbers should know."""
    by_metric: dict[MetricName, Metrics | LvisMetrics] = field(default_factory=dict)
    """Of instances, the same numbers with all that a table shows."""
    detections: list[Row] = field(default_factory=list)
    """Of instances: rows of a COCO results file, in the order of image ids, each image's best
    first."""
    quality: MaskQuality | None = None
    """Of each object, where the boxes are those of the truth."""


class Part(Protocol):
    """What came of a piece."""

    @property
    def seconds(self) -> tuple[float, ...]:
        """Of the images whose passes were timed."""


Maker: TypeAlias = Callable[[nn.Module], Callable[[Piece], Any]]
"""Given a model on its device, makes what gives a Part for each piece; each process makes one."""


class Work(NamedTuple):
    """What is done with the pieces of a split."""

    make: Maker
    """It is sent to workers."""
    measure: Callable[[Sequence[Any]], Evaluation]
    """Turns all parts into numbers."""
