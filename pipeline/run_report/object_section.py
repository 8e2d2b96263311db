"""The section with the worst, the median and the best objects by boundary IoU."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.bands import band_px
from pipeline.evaluation.mask_quality import decode_mask
from pipeline.report.boundary_picture import FALSE, MISSED, RIGHT
from pipeline.run_report.charts import plot_histogram
from pipeline.run_report.matching import Pair
from pipeline.run_report.page import Picture, Section, encode_picture
from pipeline.run_report.pictures import (
    PREDICTION,
    TRUTH,
    css_color,
    draw_instance,
    draw_objects,
)
from pipeline.run_report.predictions import Predictions
from pipeline.text import format_count

OBJECTS = "Objects"
"""Title of the section."""

UNREADABLE = "The predictions cannot be compared with the truth again"

_PICTURES = 6
"""Objects in each group of pictures."""

_DETECTIONS = 10
"""Detections to draw on a photo where none is right."""

_LEGEND = [
    (css_color(TRUTH), "truth"),
    (css_color(PREDICTION), "prediction"),
    (css_color(RIGHT), "band of both"),
    (css_color(FALSE), "band of the prediction only"),
    (css_color(MISSED), "band of the truth only"),
]


def build_objects(predictions: Predictions, pairs: Sequence[Pair], *, text: str) -> Section:
    """Build the section of objects with a predicted mask.

    Args:
        predictions: of the run.
        pairs: the objects, the lowest boundary IoU first.
        text: a sentence that says which objects these are.
    """
    if not pairs:
        return Section(
            title=OBJECTS,
            text=f"{text} From left to right: photo, truth, and the {_DETECTIONS} best detections. "
            "Click to enlarge.",
            legend=_LEGEND[:2],
            pictures=[("First photos", list(_draw_photos(predictions)))],
        )
    middle = max((len(pairs) - _PICTURES) // 2, 0)
    groups = {
        "Worst": pairs[:_PICTURES],
        "Median": pairs[middle : middle + _PICTURES],
        "Best": pairs[::-1][:_PICTURES],
    }
    if len(pairs) <= 3 * _PICTURES:
        groups = {"All, the worst first": pairs}
    values = np.array([pair.boundary_iou for pair in pairs])
    caption = "Objects by their boundary IoU"
    return Section(
        title=OBJECTS,
        text=f"{text} Of those, the worst, the median and the best by boundary IoU, the overlap of "
        f"the two bands along the outlines ({100 * predictions.ratio:g}% of the image diagonal "
        "wide). From left to right: photo, truth, prediction, error band. Click to enlarge.",
        charts=[plot_histogram(values, label="boundary IoU", unit="objects", caption=caption)],
        legend=_LEGEND,
        pictures=[
            (heading, [_draw_pair(predictions, pair) for pair in group])
            for heading, group in groups.items()
        ],
    )


def _draw_photos(predictions: Predictions) -> Iterator[Picture]:
    """Draw all objects of a few photos beside their best detections."""
    true = _group_by_image(predictions.truth["annotations"])
    best_first = sorted(predictions.rows, key=lambda row: -row["score"])
    found = _group_by_image(best_first)
    for image_id in [each for each in predictions.files if true.get(each)][:_PICTURES]:
        best = found.get(image_id, [])[:_DETECTIONS]
        masks = [decode_mask(each["segmentation"]) for each in best]
        drawn = draw_objects(
            predictions.read_photo(image_id),
            [decode_mask(each["segmentation"]) for each in true[image_id]],
            masks,
        )
        text = f"{format_count(len(true[image_id]), 'true object')}; "
        if best:
            text += f"{format_count(len(best), 'detection')}, best score {best[0]['score']:.2f}"
        else:
            text += "nothing detected"
        if empty := sum(not mask.any() for mask in masks):
            text += f", {empty} with an empty mask"
        yield encode_picture(drawn, f"{text}, {predictions.files[image_id]}")


def _group_by_image(rows: Iterable[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["image_id"], []).append(row)
    return groups


def _draw_pair(predictions: Predictions, pair: Pair) -> Picture:
    image_id = pair.truth["image_id"]
    photo = predictions.read_photo(image_id)
    height, width = photo.shape[:2]
    drawn = draw_instance(
        photo,
        decode_mask(pair.truth["segmentation"]),
        decode_mask(pair.detection["segmentation"]),
        width_px=band_px(height=height, width=width, dilation_ratio=predictions.ratio),
    )
    name = predictions.names[pair.truth["category_id"]]
    return encode_picture(
        drawn,
        f"{name}, boundary IoU {pair.boundary_iou:.2f}, score {pair.detection['score']:.2f}, "
        f"{predictions.files[image_id]}",
    )
