"""The fields of a request for a prediction, by the task of the served models."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.evaluation.mask_refinement import MAX_CHANGE
from pipeline.recipe import ModelTask
from pipeline.serving.artifacts import SCORE_THRESHOLD

PHOTO, MASKS = "photo", "masks"
FORM, JSON = "multipart/form-data", "application/json"

MASK_FORMS = "COCO RLE, a list of polygons, or a PNG of the photo's size where 0 is background"

_MODEL = "Name in /models; by default the first one."


class RequestFields(BaseModel):
    """All fields of a request but the photo and the masks."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = Field("", description=_MODEL)


class PredictFields(RequestFields):
    """Fields for a model that detects objects."""

    score_threshold: float = Field(
        SCORE_THRESHOLD, ge=0, le=1, description="Leave out detections with a lower score."
    )
    format: Literal["rle", "polygons", "png"] = Field(
        "rle",
        description="Masks as COCO run lengths, as COCO polygons (without holes), or a PNG of the "
        "photo with the masks drawn on it.",
    )


class LabelFields(RequestFields):
    """Fields for a semantic model."""

    format: Literal["png", "overlay", "json", "rle"] = Field(
        "png",
        description="png is the label map, 8 bits of the photo's size, whose values are category "
        "ids. overlay is a PNG of the photo with the classes drawn on it and a legend below. json "
        "lists the classes, with the label map as base64. rle lists them with COCO run lengths.",
    )


class RefineFields(RequestFields):
    """Fields for a refiner."""

    max_change: float = Field(
        MAX_CHANGE,
        ge=0,
        le=1,
        description="Keep a mask as given if the refiner would change it by more, as 1 - IoU.",
    )
    format: Literal["rle", "polygons", "png"] = Field(
        "rle",
        description="Masks as COCO run lengths, as COCO polygons (without holes), or a PNG of the "
        "photo with the refined masks drawn on it.",
    )
    with_given: bool = Field(
        default=False,
        description="Add each mask as it was given, in the same format, to compare both.",
    )


FIELDS: dict[ModelTask, type[RequestFields]] = {
    "instance": PredictFields,
    "semantic": LabelFields,
    "refine": RefineFields,
}


def list_names(task: ModelTask) -> list[str]:
    """List all fields of a request, the required ones first."""
    given = [PHOTO, MASKS] if task == "refine" else [PHOTO]
    return given + list(FIELDS[task].model_fields)


def describe_bodies(task: ModelTask) -> dict[str, Any]:
    """Describe the body of a request, as a form and as JSON, for OpenAPI."""
    fields = FIELDS[task].model_json_schema()
    bodies = {}
    for kind, photo in (
        (FORM, {"type": "string", "format": "binary", "description": "The file."}),
        (JSON, {"type": "string", "format": "byte", "description": "The file's bytes as base64."}),
    ):
        given = {PHOTO: photo} | ({MASKS: _describe_masks(kind)} if task == "refine" else {})
        schema = fields | {
            "title": kind,
            "required": list(given),
            "properties": given | fields["properties"],
        }
        bodies[kind] = {"schema": schema}
    return {"required": True, "content": bodies}


def _describe_masks(kind: str) -> dict[str, Any]:
    if kind == FORM:
        text = (
            "Files, one or more: a PNG with one mask, or JSON with a list of masks or of rows as "
            "in a COCO results file."
        )
        return {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": text,
        }
    text = f"Each is {MASK_FORMS}, as base64; or a row with such a segmentation."
    return {"type": "array", "items": {}, "description": text}
