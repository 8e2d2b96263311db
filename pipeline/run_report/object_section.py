"""The section with the worst, the median and the best objects by boundary IoU."""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.bands import band_px
from pipeline.evaluation.mask_quality import decode_mask
from pipeline.report.boundary_picture import FALSE, MISSED, RIGHT
from pipeline.run_report.charts import plot_histogram
from pipeline.run_report.matching import Pair
from pipeline.run_report.page import Picture, Section, encode_picture
from pipeline.run_report.pictures import PREDICTION, TRUTH, css_color, draw_instance
from pipeline.run_report.predictions import Predictions

OBJECTS = "Objects"
"""Title of the section."""

UNREADABLE = "The predictions cannot be compared with the truth again"

_PICTURES = 6
"""Objects in each group of pictures."""

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
        return Section(title=OBJECTS, gaps=[f"{text} There is nothing to show."])
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
