"""Types of an evaluation: its result, and the task that produces it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from torch import nn

from pipeline.evaluation.ap_engine import MetricName
from pipeline.evaluation.mask_quality import MaskQuality
from pipeline.evaluation.metrics import Metrics
from pipeline.evaluation.split_reader import EvalChunk

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Metrics of a model on a split, and its predictions."""

    metrics: dict[str, float]
    """For instances mask_ap, mask_ap50, ..., boundary_ap, ..., box_ap, ..., and with true boxes
    mask_iou, boundary_iou, ...; for label maps miou, boundary_f_3px, ...; for refined masks
    mask_iou, boundary_iou, boundary_iou_narrow, given_mask_iou, ...; for all images, seconds,
    images_per_s, and inference_ms_p50, _p90 and _p99, which are missing if too few images were
    evaluated. NaN if the split has no such objects."""
    text: str
    """The metrics as tables, for a terminal."""
    per_category: dict[str, dict[str, float]] = field(default_factory=dict)
    """mask_ap, boundary_ap and box_ap, or iou, boundary_f_3px, ..., by category name."""
    files: dict[str, str] = field(default_factory=dict)
    """Predictions by kind: detections or refined (COCO results files), submission (a folder in
    Cityscapes' format) or label_maps (a folder of PNGs)."""
    notices: tuple[str, ...] = ()
    """Remarks to show with the metrics."""
    by_metric: dict[MetricName, Metrics] = field(default_factory=dict)
    """For instances, the same metrics with everything that a table shows."""
    detections: list[Row] = field(default_factory=list)
    """For instances, rows of a COCO results file in the order of image ids, then by score."""
    quality: MaskQuality | None = None
    """Quality of each mask, if evaluated in the true boxes."""


class ChunkResult(Protocol):
    """Result of a predictor for one chunk."""

    @property
    def seconds(self) -> tuple[float, ...]:
        """Inference time of each image that was timed."""


PredictorFactory: TypeAlias = Callable[[nn.Module], Callable[[EvalChunk], Any]]
"""Makes a predictor, which turns a chunk into a ChunkResult, from a model on its device."""


class EvaluationTask(NamedTuple):
    """A predictor for the chunks of a split, and how to score its results."""

    make_predictor: PredictorFactory
    """Sent to workers; each process makes one predictor."""
    compute_metrics: Callable[[Sequence[Any]], Evaluation]
    """Turns the results of all chunks into metrics."""
