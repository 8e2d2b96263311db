"""Format metrics of datasets with few classes: one row per class, and their mean."""

from collections.abc import Mapping, Sequence

from pipeline.evaluation.bands import format_percent
from pipeline.evaluation.boundary_fscore import BoundaryF
from pipeline.evaluation.cityscapes_ap import CityscapesMetrics
from pipeline.evaluation.mean_iou import MeanIou
from pipeline.evaluation.table import format_notices
from pipeline.text import format_count, format_score, format_table


def format_cityscapes(metrics: CityscapesMetrics) -> str:
    """Format Cityscapes' instance AP by mask and by boundary."""
    return "\n".join(
        [
            f"Cityscapes instance AP by cityscapesScripts' rules, boundary AP with a band of "
            f"{format_percent(metrics.dilation_ratio)} of the diagonal",
            f"{format_count(metrics.frames, 'frame')}, {format_count(metrics.detections, 'mask')}",
            "",
            *_format_classes(
                {
                    name: (*metrics.mask_by_class[name], *metrics.boundary_by_class[name])
                    for name in metrics.objects
                },
                counts=("objects", metrics.objects),
                columns=("mask AP", "AP50", "boundary AP", "AP50"),
                mean=(*metrics.mask, *metrics.boundary),
            ),
            *format_notices(metrics.notices),
        ]
    )


def format_miou(metrics: MeanIou) -> str:
    """Format the IoU of each class and their mean."""
    return "\n".join(
        [
            "IoU, void left out, mean over the classes of the truth",
            format_count(metrics.images, "image"),
            "",
            *_format_classes(
                {name: (iou,) for name, iou in metrics.per_class.items()},
                counts=("pixels", metrics.pixels),
                columns=("IoU",),
                mean=(metrics.miou,),
            ),
            *format_notices(metrics.notices),
        ]
    )


def format_boundary_f(metrics: BoundaryF) -> str:
    """Format the boundary F-score of each class and their mean, at each radius."""
    rule = {
        "one": "an image without the class counts as F = 1, as in published numbers (absent=one)",
        "skip": "an image without the class is left out (absent=skip)",
    }
    return "\n".join(
        [
            f"boundary F-score; {rule[metrics.absent]}",
            format_count(metrics.images, "image"),
            "",
            *_format_classes(
                metrics.per_class,
                counts=("images", metrics.images_with),
                columns=[f"{radius} px" for radius in metrics.radii_px],
                mean=metrics.f,
            ),
            *format_notices(metrics.notices),
        ]
    )


def _format_classes(
    by_class: Mapping[str, Sequence[float]],
    *,
    counts: tuple[str, Mapping[str, int]],
    columns: Sequence[str],
    mean: Sequence[float],
) -> list[str]:
    title, count_of = counts
    rows = [
        [name, str(count_of[name]), *map(format_score, scores)] for name, scores in by_class.items()
    ]
    return format_table(
        [["class", title, *columns], *rows, ["mean", "", *map(format_score, mean)]],
        align="<>",
        min_width=6,
    )
