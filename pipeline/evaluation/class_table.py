"""The numbers of data sets with few classes as text: a row for each class, and their mean."""

from collections.abc import Mapping, Sequence

from pipeline.evaluation.bands import percent
from pipeline.evaluation.boundary_fscore import BoundaryF
from pipeline.evaluation.cityscapes_ap import CityscapesMetrics
from pipeline.evaluation.mean_iou import MeanIou
from pipeline.evaluation.table import number


def format_cityscapes(metrics: CityscapesMetrics) -> str:
    """Lay out Cityscapes' instance AP by mask and by boundary."""
    rows = {
        name: (*metrics.mask_by_class[name], *metrics.boundary_by_class[name])
        for name in metrics.objects
    }
    return "\n".join(
        [
            f"Cityscapes instance AP by cityscapesScripts' rules, boundary AP with a band of "
            f"{percent(metrics.dilation_ratio)} of the diagonal",
            f"{metrics.frames} frames, {metrics.detections} masks",
            "",
            *_rows(
                rows,
                counts=("objects", metrics.objects),
                columns=("mask AP", "AP50", "boundary AP", "AP50"),
                mean=(*metrics.mask, *metrics.boundary),
            ),
            *_notes(metrics.notices),
        ]
    )


def format_miou(metrics: MeanIou) -> str:
    """Lay out the IoU of each class and their mean."""
    return "\n".join(
        [
            "IoU, void left out, mean over the classes of the truth",
            f"{metrics.images} images",
            "",
            *_rows(
                {name: (iou,) for name, iou in metrics.per_class.items()},
                counts=("pixels", metrics.pixels),
                columns=("IoU",),
                mean=(metrics.miou,),
            ),
            *_notes(metrics.notices),
        ]
    )


def format_boundary_f(metrics: BoundaryF) -> str:
    """Lay out the boundary F-score of each class and their mean, at each radius."""
    counted = {
        "one": "an image without the class counts as F = 1, as in published numbers (absent=one)",
        "skip": "an image without the class is left out (absent=skip)",
    }
    return "\n".join(
        [
            f"boundary F-score; {counted[metrics.absent]}",
            f"{metrics.images} images",
            "",
            *_rows(
                metrics.per_class,
                counts=("images", metrics.images_with),
                columns=tuple(f"{radius} px" for radius in metrics.radii_px),
                mean=metrics.f,
            ),
        ]
    )


def _rows(
    by_class: Mapping[str, Sequence[float]],
    *,
    counts: tuple[str, Mapping[str, int]],
    columns: Sequence[str],
    mean: Sequence[float],
) -> list[str]:
    what, number_of = counts
    width = max(len("class"), *map(len, by_class))
    wide = max(len(what), *(len(str(count)) for count in number_of.values()))

    def row(name: str, count: object, cells: Sequence[str]) -> str:
        spaced = (f"  {c:>{max(len(head), 6)}}" for c, head in zip(cells, columns, strict=True))
        return f"{name:<{width}}  {count:>{wide}}" + "".join(spaced)

    return [
        row("class", what, columns),
        *(row(n, number_of[n], list(map(number, by_class[n]))) for n in by_class),
        row("mean", "", list(map(number, mean))),
    ]


def _notes(notices: Sequence[str]) -> list[str]:
    return [f"note: {notice}" for notice in notices]
