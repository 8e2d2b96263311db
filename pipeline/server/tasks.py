"""Answers of the server by task: the form of an answer, and how it is made."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel

from pipeline.data.photo import Pixels
from pipeline.recipe import ModelTask
from pipeline.server.answers import (
    draw_detections,
    draw_labels,
    draw_refined,
    encode_base64,
    to_detections,
    to_refined,
    to_segments,
)
from pipeline.server.batches import Prediction
from pipeline.server.request_fields import (
    LabelFields,
    PredictFields,
    RefineFields,
)


class Answer(BaseModel):
    """Fields of every answer in JSON."""

    model: str
    """Version that predicted: models:/NAME/VERSION."""
    image: dict[str, int]
    notices: list[str]
    """What decoding the photo changed."""


class Detection(BaseModel):
    """An object, as in a COCO results file."""

    category_id: int
    category_name: str
    score: float
    bbox: list[float]
    """x, y, width and height in pixels of the photo as stored."""
    segmentation: dict[str, Any] | list[list[float]]


class DetectionAnswer(Answer):
    """The detections of a photo."""

    detections: list[Detection]


class Segment(BaseModel):
    """A class of a label map, as in COCO's results of stuff."""

    category_id: int
    category_name: str
    area: int
    """Pixels of the class."""
    segmentation: dict[str, Any] | None = None
    """With format rle."""


class LabelAnswer(Answer):
    """The classes of a photo, the largest first."""

    segments: list[Segment]
    label_map: str | None = None
    """With format json: the 8-bit PNG of category ids, as base64."""


class RefinedMask(BaseModel):
    """A refined mask."""

    segmentation: dict[str, Any] | list[list[float]]
    change: float
    """1 - IoU of the refiner's mask with the given one."""
    confidence: float
    """Of the refiner, 0 to 1."""
    kept: bool
    """The change is above max_change, so segmentation is the given mask."""
    given: dict[str, Any] | list[list[float]] | None = None
    """With with_given: the given mask."""


class RefineAnswer(Answer):
    """The refined masks of a photo, in the order in which they were given."""

    masks: list[RefinedMask]


class Reply(NamedTuple):
    """The content of an answer."""

    number: int
    """Of detections, classes or masks."""
    png: bytes = b""
    """Instead of JSON."""
    content: dict[str, Any] = {}  # noqa: RUF012  never changed
    """What JSON has beside the fields of `Answer`."""


class TaskApi(NamedTuple):
    """The API of a task."""

    summary: str
    curl: str
    """Arguments of an example."""
    answer: type[Answer]
    make_reply: Callable[[Prediction, Pixels, Any], Reply]
    """With the task's class of `request_fields.FIELDS`."""


def _reply_detections(found: Prediction, pixels: Pixels, fields: PredictFields) -> Reply:
    rows = [row for row in found.rows if row["score"] >= fields.score_threshold]
    if fields.format == "png":
        return Reply(len(rows), png=draw_detections(pixels, rows))
    categories = found.version.predictor.categories
    detections = to_detections(rows, categories, as_polygons=fields.format == "polygons")
    return Reply(len(rows), content={"detections": detections})


def _reply_labels(found: Prediction, pixels: Pixels, fields: LabelFields) -> Reply:
    (row,) = found.rows
    count = len(row["category_ids"])
    if fields.format == "png":
        return Reply(count, png=row["label_map"])
    if fields.format == "overlay":
        return Reply(count, png=draw_labels(pixels, row, found.version.predictor.categories))
    content: dict[str, Any] = {"segments": to_segments(row, with_masks=fields.format == "rle")}
    if fields.format == "json":
        content["label_map"] = encode_base64(row["label_map"])
    return Reply(count, content=content)


def _reply_refined(found: Prediction, pixels: Pixels, fields: RefineFields) -> Reply:
    if fields.format == "png":
        return Reply(len(found.rows), png=draw_refined(pixels, found.rows))
    masks = to_refined(
        found.rows, as_polygons=fields.format == "polygons", with_given=fields.with_given
    )
    return Reply(len(masks), content={"masks": masks})


TASKS: dict[ModelTask, TaskApi] = {
    "instance": TaskApi(
        "Detect the objects of a photo",
        "-F photo=@photo.jpg -F score_threshold=0.5 -F format=rle",
        DetectionAnswer,
        _reply_detections,
    ),
    "semantic": TaskApi(
        "Label every pixel of a photo with its class",
        "-F photo=@photo.jpg -o labels.png",
        LabelAnswer,
        _reply_labels,
    ),
    "refine": TaskApi(
        "Refine masks of a photo",
        "-F photo=@photo.jpg -F masks=@masks.json",
        RefineAnswer,
        _reply_refined,
    ),
}
