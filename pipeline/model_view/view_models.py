"""Write one HTML page with several models on the same photos (Fig. 7 and 8 of the paper)."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.label_png import read_values
from pipeline.data.photo import Pixels
from pipeline.errors import RecipeError
from pipeline.model_view.options import CompareOptions
from pipeline.model_view.photos import NamedPhoto, fit_into, read_photos
from pipeline.model_view.truth import Truth
from pipeline.progress import log_progress
from pipeline.registry.predict import RegisteredModel, load_registered_model
from pipeline.report.draw import Instance, decode_instances, draw_instances
from pipeline.report.label_picture import assign_colors, draw_label_map
from pipeline.run_report.page import Page, Picture, Section, encode_picture, write_page
from pipeline.run_report.pictures import join_panels
from pipeline.text import format_count

_log = logging.getLogger(__name__)


def view_models(
    models: Sequence[str],
    images: Sequence[str],
    options: CompareOptions,
    *,
    out: str,
    truth: str = "",
    tracking: str = "",
) -> dict[str, Any]:
    """Write the page that compares models.

    Args:
        models: models:/NAME@ALIAS or models:/NAME/VERSION, all of one task.
        images: photos and folders of photos.
        options: what to show.
        out: file to write.
        truth: COCO annotation file with the true masks; "" for none.
        tracking: URI of the registry; "" means the embedded store.

    Returns:
        out, models and photos, for the RESULT line.

    Raises:
        DatasetError: no photo can be read, or the truth does not fit them.
        RecipeError: the models cannot be shown beside each other.
        RegistryError: there is no such model.
    """
    if not models:
        raise RecipeError("no model is given; type: bsm view models models:/NAME@champion ...")
    loaded = [load_registered_model(each, tracking=tracking) for each in models]
    _check_tasks(loaded, truth)
    for uri, count in Counter(each.uri for each in loaded).items():
        if count > 1:
            _log.warning("view: %s is shown %d times: an alias is a name of a version", uri, count)
    known = Truth(truth) if truth else None
    photos = read_photos(images, limit=options.photos)
    pictures = [
        _draw_photo(photo, loaded, known, options)
        for photo in log_progress(photos, "view", total=len(photos))
    ]
    names = [each.uri for each in loaded]
    columns = ["photo", *(["truth"] if known else []), *names]
    page = Page(
        title="Models side by side",
        subtitle=f"{', '.join(names)} on {format_count(len(photos), 'photo')}",
        sections=[
            Section(
                title="Photos",
                text=f"From left to right: {', '.join(columns)}. {_describe(loaded, options)}"
                "Click to enlarge.",
                gaps=[] if known is None else _list_unknown(known, photos),
                pictures=[("", pictures)],
            )
        ],
    )
    return {"out": write_page(page, out=out), "models": names, "photos": len(photos)}


def _check_tasks(loaded: Sequence[RegisteredModel], truth: str) -> None:
    tasks = {each.model.task for each in loaded}
    if "refine" in tasks or len(tasks) > 1:
        found = ", ".join(f"{each.uri} ({each.model.task})" for each in loaded)
        raise RecipeError(
            f"models of different tasks, or refiners: {found}. Give models that all detect objects "
            "or all predict label maps"
        )
    if truth and tasks == {"semantic"}:
        raise RecipeError("--truth: masks of objects, and the models predict label maps; remove it")


def _describe(loaded: Sequence[RegisteredModel], options: CompareOptions) -> str:
    if loaded[0].model.task == "semantic":
        return ""
    return f"Objects have a score of at least {options.score:g}. "


def _list_unknown(known: Truth, photos: Sequence[NamedPhoto]) -> list[str]:
    missing = [each.name for each in photos if known.find(each) is None]
    return [f"The truth does not list {', '.join(missing)}."] if missing else []


def _draw_photo(
    photo: NamedPhoto,
    loaded: Sequence[RegisteredModel],
    known: Truth | None,
    options: CompareOptions,
) -> Picture:
    width = options.width
    panels = [fit_into(photo.pixels, width_px=width)]
    counts = []
    if known is not None:
        true = known.find(photo) or []
        panels.append(_draw_objects(photo.pixels, true, width))
        counts.append(f"{len(true)} in the truth")
    for each in loaded:
        if each.model.task == "semantic":
            panels.append(_draw_labels(photo.pixels, each, width))
            continue
        rows = each.model.predict_photo(photo.pixels, score_threshold=options.score)
        panels.append(_draw_objects(photo.pixels, decode_instances(rows), width))
        counts.append(f"{len(rows)} by {each.uri}")
    caption = f"{photo.name}: {', '.join(counts)}" if counts else photo.name
    return encode_picture(join_panels(_pad(panels)), caption)


def _draw_objects(pixels: Pixels, objects: Sequence[Instance], width: int) -> Pixels:
    # Drawn at the size of the panel: lines and names would shrink with the photo.
    small = fit_into(pixels, width_px=width)
    size_hw = small.shape[:2]
    resized = [each._replace(mask=_resize(each.mask, size_hw)) for each in objects]
    return np.asarray(draw_instances(small, resized, min_side_px=1))


def _draw_labels(pixels: Pixels, registered: RegisteredModel, width: int) -> Pixels:
    (row,) = registered.model.predict_photo(pixels)
    labels = read_values(row["label_map"], bits=8, max_pixels=None)
    small = fit_into(pixels, width_px=width)
    legend = assign_colors({each.category_id: each.name for each in registered.model.categories})
    resized = np.asarray(
        Image.fromarray(labels).resize(small.shape[1::-1], Image.Resampling.NEAREST)
    )
    return np.asarray(draw_label_map(small, resized, legend, min_side_px=1))


def _resize(mask: Any, size_hw: tuple[int, int]) -> Any:  # noqa: ANN401
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size_hw[::-1], Image.Resampling.BILINEAR)) > 127


def _pad(panels: Sequence[Pixels]) -> list[Pixels]:
    """Make panels equally high: label maps have a legend below."""
    height = max(map(len, panels))
    return [
        np.pad(each, ((0, height - len(each)), (0, 0), (0, 0)), constant_values=255)
        for each in panels
    ]
