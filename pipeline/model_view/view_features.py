"""Write one HTML page with the features of a model's squeeze (Fig. 5 and 9 of the paper)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from pipeline.data.photo import Pixels
from pipeline.errors import RecipeError
from pipeline.model_view.colors import (
    Floats,
    color_flow,
    draw_wheel,
    find_longest,
    project_features,
)
from pipeline.model_view.options import FeatureOptions
from pipeline.model_view.photos import NamedPhoto, read_photos
from pipeline.model_view.squeeze_features import (
    SqueezeView,
    check_squeeze,
    view_frame,
    view_instances,
)
from pipeline.registry.predict import RegisteredModel, load_registered_model
from pipeline.report.label_picture import ClassColor, assign_colors
from pipeline.run_report.page import Page, Picture, Section, encode_picture, write_page
from pipeline.run_report.pictures import css_color, join_panels
from pipeline.text import format_count

_OBJECT_PX, _FRAME_PX, _WHEEL_PX = 200, 420, 160
_MASK_COLOR = (230, 159, 0)

_FLOW_TEXT = (
    "A flow tells each cell of the feature where to read instead: the hue is the direction, the "
    "saturation the length. "
)


class _Shown(NamedTuple):
    photo: NamedPhoto
    view: SqueezeView


def view_features(
    model: str,
    images: Sequence[str],
    options: FeatureOptions,
    *,
    out: str,
    tracking: str = "",
) -> dict[str, Any]:
    """Write the page of a model's squeeze.

    Args:
        model: models:/NAME@ALIAS or models:/NAME/VERSION, with a squeeze.
        images: photos and folders of photos.
        options: what to show.
        out: file to write.
        tracking: URI of the registry; "" means the embedded store.

    Returns:
        out, model, photos and objects, for the RESULT line.

    Raises:
        DatasetError: no photo can be read.
        RecipeError: the model has no squeeze, or finds no object.
        RegistryError: there is no such model.
    """
    registered = load_registered_model(model, tracking=tracking)
    predictor = registered.model
    check_squeeze(predictor, registered.uri)
    photos = read_photos(images, limit=options.photos)
    is_semantic = predictor.task == "semantic"
    shown = [
        _Shown(photo, view)
        for photo in photos
        for view in (
            [view_frame(predictor, photo.pixels)]
            if is_semantic
            else view_instances(
                predictor, photo.pixels, score=options.score, objects=options.objects
            )
        )
    ]
    if not shown:
        raise RecipeError(
            f"{registered.uri} finds no object with a score of {options.score:g} or more in "
            f"{format_count(len(photos), 'photo')}. See others with --score 0.05"
        )
    section = _make_frames(registered, shown) if is_semantic else _make_objects(shown)
    page = Page(
        title=f"Squeeze: {registered.uri}",
        subtitle=f"{format_count(len(photos), 'photo')}, "
        + format_count(len(shown), "frame" if is_semantic else "object"),
        sections=[section, _make_legend(shown)],
    )
    written = write_page(page, out=out)
    return {"out": written, "model": registered.uri, "photos": len(photos), "objects": len(shown)}


def _make_objects(shown: Sequence[_Shown]) -> Section:
    pictures = _draw_all(shown, lambda _: (_OBJECT_PX, _OBJECT_PX), _draw_masks)
    cells = shown[0].view.contraction_flow.shape[-1]
    return Section(
        title="Objects",
        text="Each object in its box as the RoI, stretched to a square. From left to right: photo, "
        f"contraction flow and expansion flow ({cells} x {cells} cells), the first three principal "
        "components of the boundary feature as red, green and blue, the predicted boundary, and "
        "the mask before and after the squeeze. "
        + _FLOW_TEXT
        + "The mask before the squeeze is the mask predictor's answer to the feature that the "
        "squeeze takes; the predictor was trained on the feature after it. Click to enlarge.",
        legend=[(css_color(_MASK_COLOR), "mask")],
        filters=[("category", sorted({each.view.title.rpartition(" ")[0] for each in shown}))],
        pictures=[("", pictures)],
    )


def _make_frames(registered: RegisteredModel, shown: Sequence[_Shown]) -> Section:
    classes = assign_colors(
        {each.category_index: each.name for each in registered.model.categories}
    )

    def size_hw(each: _Shown) -> tuple[int, int]:
        height, width = each.photo.pixels.shape[:2]
        return max(1, round(_FRAME_PX * height / width)), _FRAME_PX

    pictures = _draw_all(shown, size_hw, lambda each, crop: [_draw_labels(each, crop, classes)])
    return Section(
        title="Frames",
        text="From left to right: photo, contraction flow, expansion flow, the first three "
        "principal components of the boundary feature as red, green and blue, the predicted "
        "boundary (of all classes), and the label map. " + _FLOW_TEXT + "Click to enlarge.",
        legend=[(css_color(each.color), each.name) for each in classes],
        pictures=[("", pictures)],
    )


def _make_legend(shown: Sequence[_Shown]) -> Section:
    longest = _find_longest(shown)
    return Section(
        title="Color wheel",
        text="A flow from the middle of the wheel to a point has the color of that point. The rim "
        f"is a flow of {longest / 2:.2g} cells of the feature; longer ones, the longest percent, "
        "have its color too.",
        pictures=[("", [encode_picture(draw_wheel(_WHEEL_PX), "The colors of a flow")])],
    )


def _find_longest(shown: Sequence[_Shown]) -> float:
    flows = [flow for _, view in shown for flow in (view.contraction_flow, view.expansion_flow)]
    return find_longest(flows)


def _draw_all(
    shown: Sequence[_Shown],
    size_hw: Callable[[_Shown], tuple[int, int]],
    draw_masks: Callable[[_Shown, Pixels], list[Pixels]],
) -> list[Picture]:
    """Draw the panels of each object or frame side by side, with colors that all share."""
    longest = _find_longest(shown)
    components = project_features([each.view.feature for each in shown])
    pictures = []
    for each, projected in zip(shown, components, strict=True):
        size, view = size_hw(each), each.view
        crop = _crop_photo(each, size)
        flows = [
            color_flow(flow, longest=longest)
            for flow in (view.contraction_flow, view.expansion_flow)
        ]
        panels = [crop, *(_enlarge(panel, size) for panel in (*flows, projected))]
        panels.append(_enlarge(_to_gray(view.boundary), size))
        panels += draw_masks(each, crop)
        reach = max(np.hypot(*flow).max() for flow in (view.contraction_flow, view.expansion_flow))
        caption = ", ".join(filter(None, (view.title, each.photo.name)))
        caption += f", longest flow {reach / 2:.2g} cells"
        tags = tuple(filter(None, (view.title.rpartition(" ")[0],)))
        pictures.append(encode_picture(join_panels(panels), caption, tags=tags))
    return pictures


def _draw_masks(each: _Shown, crop: Pixels) -> list[Pixels]:
    masks = [mask for mask in (each.view.before, each.view.after) if mask is not None]
    return [_draw_mask(crop, mask.astype(np.uint8)) for mask in masks]


def _draw_mask(crop: Pixels, mask: Any) -> Pixels:  # noqa: ANN401
    size = crop.shape[:2]
    inside = np.asarray(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)) > 0
    drawn = crop.copy()
    drawn[inside] = drawn[inside] * 0.5 + np.array(_MASK_COLOR) * 0.5
    return drawn


def _draw_labels(each: _Shown, crop: Pixels, classes: Sequence[ClassColor]) -> Pixels:
    size = crop.shape[:2]
    labels = cv2.resize(each.view.after, size[::-1], interpolation=cv2.INTER_NEAREST)
    drawn = crop * 0.45
    for one in classes:
        drawn[labels == one.value] += np.array(one.color) * 0.55
    return drawn.astype(np.uint8)


def _crop_photo(each: _Shown, size_hw: tuple[int, int]) -> Pixels:
    left, top, right, bottom = each.view.box_xyxy
    rows = slice(max(int(top), 0), max(math.ceil(bottom), int(top) + 1))
    columns = slice(max(int(left), 0), max(math.ceil(right), int(left) + 1))
    crop = each.photo.pixels[rows, columns]
    method = cv2.INTER_AREA if crop.shape[0] > size_hw[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(crop, size_hw[::-1], interpolation=method), np.uint8)


def _to_gray(values: Floats) -> Pixels:
    gray = (255 * values.clip(0, 1)).round().astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def _enlarge(panel: Pixels, size_hw: tuple[int, int]) -> Pixels:
    """Enlarge without smoothing: a cell stays a square."""
    large = cv2.resize(panel, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(large, np.uint8)
