"""Write one HTML page with photos of a data set, their masks, and the targets made from them."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.data.learnable import describe_gaps
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.data.schema import PLANES
from pipeline.data_view.frames import draw_frame_targets
from pipeline.data_view.objects import (
    COLUMNS,
    TARGET_COLORS,
    draw_photo,
    draw_targets,
    list_objects,
)
from pipeline.data_view.options import SIZES, ViewOptions, find_categories
from pipeline.errors import RecipeError
from pipeline.evaluation.split_reader import EvalChunk, plan_chunks, read_chunk
from pipeline.report.label_picture import assign_colors
from pipeline.run_report.page import Page, Picture, Section, Table, write_page
from pipeline.run_report.pictures import css_color
from pipeline.run_report.sections import list_facts
from pipeline.text import format_count

MOST_READ = 2000
"""Photos read to find some with the chosen objects."""


def view_data(shards: str, options: ViewOptions, *, out: str) -> dict[str, Any]:
    """Write the page of a data set.

    Args:
        shards: folder or URI of a split's shards.
        options: what to show.
        out: file to write.

    Returns:
        out, photos and objects, for the RESULT line.

    Raises:
        DatasetError: the folder is not a complete split, or a photo cannot be decoded.
        RecipeError: the data set has no such category, or nothing is selected.
        StorageError: a file cannot be read or written.
    """
    uri = storage.absolute(shards)
    manifest = read_manifest(uri)
    categories = find_categories(options, manifest)
    build = _view_frames if manifest.task == "semantic" else _view_objects
    sections, counts = build(uri, manifest, options, categories)
    if not counts["photos"]:
        raise RecipeError(
            f"no photo of {shards} has such objects (--category, --size), among the "
            f"{min(MOST_READ, manifest.images)} that were read. Choose others, or another --seed"
        )
    facts = [["", uri.rpartition("/")[2]], *list_facts({"": manifest})]
    about = Section(
        title="Data",
        gaps=[f"{gap}." for gap in describe_gaps(manifest)],
        tables=[Table(rows=facts, is_numeric=False)],
    )
    page = Page(
        title=f"Data: {uri.rpartition('/')[2]}",
        subtitle=f"{format_count(manifest.images, 'photo')} in {uri}, "
        f"{counts['photos']} of them shown (seed {options.seed})",
        sections=[*sections, about],
    )
    return {"out": write_page(page, out=out), **counts}


def _read_rows(uri: str, seed: int, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield photos of a split in random order, each as a table with one row."""
    chunks = plan_chunks(uri, max_images=None, images_per_chunk=1)
    random.Random(seed).shuffle(chunks)  # noqa: S311  which photos are seen first
    for chunk in chunks[:MOST_READ]:
        one = EvalChunk(chunk.file, chunk.row_group, chunk.rows, chunk.image_ids)
        yield read_chunk(uri, one, truth=columns)


def _view_objects(
    uri: str, manifest: Manifest, options: ViewOptions, categories: set[int]
) -> tuple[list[Section], dict[str, int]]:
    photos: list[Picture] = []
    drawn: list[Picture] = []
    for row in _read_rows(uri, options.seed, COLUMNS):
        objects = list_objects(row, options, manifest, categories=categories)
        if not objects:
            continue
        photos.append(draw_photo(row, objects))
        if left := objects[: options.objects - len(drawn)]:
            drawn += draw_targets(row, left, options)
        if len(photos) == options.photos:
            break
    names = [each.name for each in manifest.categories if each.category_index in categories]
    sizes: list[str] = [each for each in SIZES if each in options.size]
    filters = [("category", names), ("size", sizes)]
    kernel = options.kernel_size or 5
    return [
        Section(
            title="Photos",
            text="The chosen objects of each photo, without crowds. Click to enlarge.",
            filters=filters,
            pictures=[("", photos)],
        ),
        Section(
            title="Targets",
            text="What a mask head is trained on: each object in its true box as the RoI, in "
            f"{options.side} x {options.side} cells stretched to a square, with a kernel of "
            f"{kernel} cells from source {options.source}. From left to right: photo, mask, "
            "boundary, contraction, expansion. The RoIs of training are proposals, near the "
            "true box.",
            legend=[(css_color(color), name) for name, color in TARGET_COLORS.items()],
            filters=filters,
            pictures=[("", drawn)],
        ),
    ], {"photos": len(photos), "objects": len(drawn)}


def _view_frames(
    uri: str, manifest: Manifest, options: ViewOptions, categories: set[int]
) -> tuple[list[Section], dict[str, int]]:
    colors = assign_colors({each.category_index: each.name for each in manifest.categories})
    frames: list[Picture] = []
    for row in _read_rows(uri, options.seed, PLANES):
        drawn = draw_frame_targets(row, options, manifest, categories=categories, colors=colors)
        if drawn is not None:
            frames.append(drawn)
        if len(frames) == options.photos:
            break
    kernel = options.kernel_size or 15
    shown = [each for each in colors if each.value in categories]
    return [
        Section(
            title="Frames",
            text="From left to right: photo, label map, and the boundary, contraction and "
            f"expansion targets of the chosen classes together, with a kernel of {kernel} pixels "
            "of the stored photo. Click to enlarge.",
            legend=[(css_color(each.color), each.name) for each in colors],
            filters=[("class", [each.name for each in shown])],
            pictures=[("", frames)],
        )
    ], {"photos": len(frames), "objects": 0}
