"""The sections of a run that predicts label maps: classes, confusion, and the worst frames."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.data.augment import decode_row
from pipeline.data.collate_semantic import decode_label
from pipeline.data.semantic_fields import decode_plane
from pipeline.errors import PipelineError
from pipeline.evaluation.mean_iou import VOID, count_pixels, mean_iou
from pipeline.evaluation.split_reader import EvalChunk, plan_chunks, read_chunk
from pipeline.report.label_picture import ClassColor, assign_colors
from pipeline.run_report.charts import plot_categories, plot_matrix
from pipeline.run_report.page import Section, Table, encode_picture
from pipeline.run_report.pictures import WRONG, css_color, draw_frame
from pipeline.run_report.run_folder import RunFolder
from pipeline.text import format_count

READ_FRAMES = 200
"""Label maps are compared again in this many frames, to write a report in a minute."""

_WORST = 6

_FRAMES_PER_CHUNK = 8


class _Frame(NamedTuple):
    chunk: EvalChunk
    file_name: str
    counts: NDArray[np.int64]
    miou: float


def build_sections(run: RunFolder, other: RunFolder | None) -> list[Section]:
    """Build the sections of a run that predicts label maps, with the scores of another one."""
    return [_build_classes(run, other), *_build_frames(run)]


def _build_classes(run: RunFolder, other: RunFolder | None) -> Section:
    title = "Classes"
    if run.record is None:
        return Section(title=title, gaps=[run.gaps["record"]])
    scores = run.record.per_category
    keys = list(next(iter(scores.values()), {}))
    labels = {key: _label(key) for key in keys}
    known = {
        name: {labels[key]: 100 * each[key] for key in keys}
        for name, each in scores.items()
        if not math.isnan(each.get("iou", math.nan))
    }
    absent = [name for name in scores if name not in known]
    names = sorted(known, key=lambda name: -known[name]["IoU"])
    theirs = other.record.per_category if other and other.record else {}
    header = [f"{label}, {other.name}" for label in labels.values()] if other else []
    rows = [["class", *labels.values(), *header]]
    for name in names:
        of_other = theirs.get(name, {})
        its = [_format(100 * of_other.get(key, math.nan)) for key in keys] if other else []
        rows.append([name, *map(_format, known[name].values()), *its])
    gaps = [f"Without pixels in the evaluated images: {', '.join(absent)}."] if absent else []
    if not names:
        return Section(title=title, gaps=gaps or ["The run has no scores by class."])
    return Section(
        title=title,
        text="IoU and boundary F by class, in the order of IoU. Boundary F counts outline pixels "
        "within the distance in its name.",
        gaps=gaps,
        charts=[
            plot_categories(
                {name: known[name] for name in names},
                unit="IoU and boundary F [%]",
                caption="IoU and boundary F by class",
            )
        ],
        tables=[Table(rows=rows, folded="All classes as numbers")],
    )


def _build_frames(run: RunFolder) -> list[Section]:
    titles = ("Confusion of classes", "Worst frames")
    try:
        frames = _compare_frames(run)
        names = [each.name for each in run.val.categories] if run.val else []
        colors = assign_colors(dict(enumerate(names)))
        total = np.sum([each.counts for each in frames], axis=0)
        return [
            _build_confusion(total, names, len(frames), titles[0]),
            _build_worst(run, frames, colors, titles[1]),
        ]
    except (PipelineError, OSError, ValueError, KeyError) as error:
        gap = f"The label maps cannot be compared with the truth again: {error}"
        return [Section(title=title, gaps=[gap]) for title in titles]


def _compare_frames(run: RunFolder) -> list[_Frame]:
    if run.val is None:
        raise ValueError(run.gaps["val"])
    limit = min(run.recipe.evaluation.max_images or READ_FRAMES, READ_FRAMES)
    names = [each.name for each in run.val.categories]
    frames = []
    for chunk in plan_chunks(run.val_uri, max_images=limit, images_per_chunk=_FRAMES_PER_CHUNK):
        table = read_chunk(run.val_uri, chunk, truth=["label"])
        for row in range(len(table)):
            file_name = table["file_name"][row].as_py()
            counts = count_pixels(
                decode_label(table, row), _read_map(run, file_name), num_classes=len(names)
            )
            one = EvalChunk(
                chunk.file, chunk.row_group, (chunk.rows[row],), (chunk.image_ids[row],)
            )
            miou = mean_iou(counts, names=names, images=1).miou
            frames.append(_Frame(one, file_name, counts, miou))
    return frames


def _read_map(run: RunFolder, file_name: str) -> NDArray[np.uint8]:
    """Read a predicted label map, with class indices as values."""
    uri = storage.join(run.uri, "label_maps", f"{file_name.rpartition('.')[0]}.png")
    plane = decode_plane(storage.read_bytes(uri))
    if plane is None:
        raise ValueError(f"{uri} is not a PNG")
    indices = np.full(256, VOID, np.uint8)
    for each in run.val.categories if run.val else ():
        indices[each.category_id] = each.category_index
    return np.asarray(indices[plane], dtype=np.uint8)


def _build_confusion(
    counts: NDArray[np.int64], names: list[str], frames: int, title: str
) -> Section:
    with np.errstate(invalid="ignore"):
        shares = counts[:, :-1] / counts.sum(axis=1, keepdims=True)
    pairs = [
        (float(share), names[row], names[column])
        for (row, column), share in np.ndenumerate(shares)
        if row != column and share > 0
    ]
    pairs.sort(key=lambda each: -each[0])
    rows = [["true", "predicted", "% of the true pixels"]]
    rows += [[true, found, f"{100 * share:.1f}"] for share, true, found in pairs[:20]]
    return Section(
        title=title,
        text=f"Pixels of each class in {format_count(frames, 'frame')}, by predicted class.",
        charts=[
            plot_matrix(shares, rows=names, columns=names, caption="Confusion of classes by pixel")
        ],
        tables=[Table(rows=rows, folded="The most frequent confusions")] if pairs else [],
        gaps=[] if pairs else ["No pixel has a wrong class."],
    )


def _build_worst(
    run: RunFolder, frames: list[_Frame], colors: list[ClassColor], title: str
) -> Section:
    known = [each for each in frames if not math.isnan(each.miou)]
    worst = sorted(known, key=lambda each: each.miou)[:_WORST]
    pictures = []
    for each in worst:
        table = read_chunk(run.val_uri, each.chunk, truth=["label"])
        drawn = draw_frame(
            decode_row(table, 0),
            decode_label(table, 0),
            _read_map(run, each.file_name),
            colors,
            void=VOID,
        )
        pictures.append(encode_picture(drawn, f"{each.file_name}, mean IoU {each.miou:.2f}"))
    return Section(
        title=title,
        text=f"The lowest mean IoU of {format_count(len(known), 'frame')}. From left to right: "
        "photo, truth, prediction, wrong pixels. Click to enlarge.",
        legend=[
            *((css_color(each.color), each.name) for each in colors),
            (css_color(WRONG), "wrong pixel"),
        ],
        pictures=[("Worst", pictures)] if pictures else [],
        gaps=[] if pictures else ["No frame has a class."],
    )


def _label(key: str) -> str:
    if key == "iou":
        return "IoU"
    return key.replace("boundary_f_", "boundary F(").replace("px", " px)")


def _format(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
