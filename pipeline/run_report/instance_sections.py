"""The sections of a run that predicts instances: sizes, categories, objects, confusion, scores."""

import json
import math
from typing import Any

import numpy as np

from pipeline import checksums, storage
from pipeline.data.augment import decode_row
from pipeline.data.photo import Pixels
from pipeline.errors import PipelineError
from pipeline.evaluation.bands import band_px, choose_ratio
from pipeline.evaluation.mask_quality import decode_mask
from pipeline.evaluation.split_reader import EvalChunk, plan_chunks, read_chunk, truth_from_shards
from pipeline.report.boundary_picture import FALSE, MISSED, RIGHT
from pipeline.run_report import charts
from pipeline.run_report.charts import plot_calibration, plot_categories, plot_groups, plot_matrix
from pipeline.run_report.matching import IOU, SCORE, Matches, Pair, match_detections
from pipeline.run_report.page import Picture, Section, Table, encode_picture
from pipeline.run_report.pictures import PREDICTION, TRUTH, css_color, draw_instance
from pipeline.run_report.run_folder import RunFolder
from pipeline.text import format_count

MATCHED_IMAGES = 1000
"""Objects are matched in this many images, to write a report in a minute."""

_PICTURES = 6
"""Objects in each group of pictures."""

_SHOWN_CATEGORIES = 15
"""Best and worst categories in the chart, if there are more than twice as many."""

_MATRIX_SIDE = 30
"""Categories that fit into the matrix; of more, only the most frequent confusions are listed."""

_CONFUSIONS = 20

_METRICS = ("mask_ap", "boundary_ap", "box_ap")

_FEDERATED = (
    "The images of this data set were not checked for all categories, as in LVIS: a detection of "
    "an object that nobody annotated counts as wrong here, but not in AP."
)


def build_sections(run: RunFolder, other: RunFolder | None) -> list[Section]:
    """Build the sections of a run that predicts instances, with the scores of another one."""
    return [_build_sizes(run, other), *_build_matches(run)]


def _build_sizes(run: RunFolder, other: RunFolder | None) -> Section:
    title = "Size and category"
    if run.record is None:
        return Section(title=title, gaps=[run.gaps["record"]])
    metrics, scores = run.record.metrics, run.record.per_category
    sizes = {
        metric.replace("_ap", " AP"): {
            size: 100 * metrics.get(f"{metric}_{size}", math.nan)
            for size in ("small", "medium", "large")
        }
        for metric in _METRICS
    }
    by_category = {
        name: {_label(key): 100 * value for key, value in each.items()}
        for name, each in scores.items()
        if not math.isnan(each.get("mask_ap", math.nan))
    }
    names = sorted(by_category, key=lambda name: -by_category[name]["mask AP"])
    absent = [name for name in scores if name not in by_category]
    shown = names
    if len(names) > 2 * _SHOWN_CATEGORIES:
        shown = [*names[:_SHOWN_CATEGORIES], *names[-_SHOWN_CATEGORIES:]]
    listed = f"; the {_SHOWN_CATEGORIES} best and worst of {len(names)}" * (shown is not names)
    drawn = [plot_groups(sizes, unit="AP [%]", caption="AP by size of the objects")]
    if shown:
        drawn.append(
            plot_categories(
                {name: by_category[name] for name in shown},
                unit="AP [%]",
                caption="AP by category",
            )
        )
    return Section(
        title=title,
        text="Small objects are below 32 x 32 pixels, large ones from 96 x 96. Categories are in "
        f"the order of mask AP{listed}.",
        gaps=[f"Without objects in the evaluated images: {', '.join(absent)}."] if absent else [],
        charts=drawn,
        tables=[
            Table(
                rows=_list_categories(names, run, other),
                folded=f"All {len(names)} categories as numbers",
            )
        ],
    )


def _list_categories(names: list[str], run: RunFolder, other: RunFolder | None) -> list[list[str]]:
    """Table the scores by category; beside another run also its scores and the difference."""
    ours = run.record.per_category if run.record else {}
    theirs = other.record.per_category if other and other.record else {}
    header = ["category"]
    for metric in _METRICS:
        header += [_label(metric), *([other.name, "difference"] if other else [])]
    rows = [header]
    for name in names:
        row = [name]
        for metric in _METRICS:
            mine = 100 * ours[name].get(metric, math.nan)
            its = 100 * theirs.get(name, {}).get(metric, math.nan)
            row += [_format(mine), *([_format(its), _format_change(mine - its)] if other else [])]
        rows.append(row)
    return rows


def _build_matches(run: RunFolder) -> list[Section]:
    titles = ("Objects", "Confusion of categories", "Calibration of scores")
    try:
        matched = _Matched(run)
    except (PipelineError, OSError, ValueError, KeyError) as error:
        gap = f"The predictions cannot be compared with the truth again: {error}"
        return [Section(title=title, gaps=[gap]) for title in titles]
    return [
        _build_objects(matched, titles[0]),
        _build_confusion(matched, titles[1]),
        _build_calibration(matched, titles[2]),
    ]


class _Matched:
    """The truth and the matched detections of the first images of a run."""

    def __init__(self, run: RunFolder) -> None:
        if run.val is None:
            raise ValueError(run.gaps["val"])
        uri = storage.join(run.uri, "detections.json")
        rows = json.loads(checksums.read_file(uri))
        limit = run.recipe.evaluation.max_images
        self.chunks = plan_chunks(
            run.val_uri,
            max_images=min(limit or MATCHED_IMAGES, MATCHED_IMAGES),
            images_per_chunk=MATCHED_IMAGES,
        )
        image_ids = {image_id for chunk in self.chunks for image_id in chunk.image_ids}
        truth = truth_from_shards(run.val_uri, image_ids=image_ids)
        self.run, self.truth = run, truth
        self.ratio = choose_ratio(run.recipe.evaluation, run.val)
        known = {each["id"] for each in truth["categories"]}
        self.rows: list[Any] = [
            row for row in rows if row["image_id"] in image_ids and row["category_id"] in known
        ]
        self.matches: Matches = match_detections(truth, self.rows, dilation_ratio=self.ratio)
        self.names = {each["id"]: each["name"] for each in truth["categories"]}
        self.files = {each["id"]: each["file_name"] for each in truth["images"]}
        total = min(limit or run.val.images, run.val.images)
        count = format_count(len(image_ids), "image")
        self.caveats = [_FEDERATED] if run.val.federated else []
        self.scope = f"in {count}" if len(image_ids) == total else f"in the first {count}"

    def read_photo(self, image_id: int) -> Pixels:
        for chunk in self.chunks:
            if image_id in chunk.image_ids:
                row = chunk.rows[chunk.image_ids.index(image_id)]
                one = EvalChunk(chunk.file, chunk.row_group, (row,), (image_id,))
                return decode_row(read_chunk(self.run.val_uri, one), 0)
        raise ValueError(f"image {image_id} is not in {self.run.val_uri}")


def _build_objects(matched: _Matched, title: str) -> Section:
    pairs, missed = matched.matches.pairs, matched.matches.missed
    objects = len(pairs) + missed
    text = (
        f"{len(pairs)} of {format_count(objects, 'object')} {matched.scope} were found: by a "
        f"detection of their category with a mask IoU of at least {IOU}. Of those, the worst, the "
        "median and the best by boundary IoU, the overlap of the two bands along the outlines "
        f"({100 * matched.ratio:g}% of the image diagonal wide). From left to right: photo, truth, "
        "prediction, error band. Click to enlarge."
    )
    if not pairs:
        return Section(title=title, gaps=[text.partition(". ")[0] + ": nothing to show."])
    middle = max((len(pairs) - _PICTURES) // 2, 0)
    groups = {
        "Worst": pairs[:_PICTURES],
        "Median": pairs[middle : middle + _PICTURES],
        "Best": pairs[::-1][:_PICTURES],
    }
    if len(pairs) <= _PICTURES:
        groups = {"All, the worst first": pairs}
    values = np.array([pair.boundary_iou for pair in pairs])
    return Section(
        title=title,
        text=text,
        charts=[
            charts.plot_histogram(
                values,
                label="boundary IoU",
                unit="objects",
                caption="Boundary IoU of found objects",
            )
        ],
        legend=[
            (css_color(TRUTH), "truth"),
            (css_color(PREDICTION), "prediction"),
            (css_color(RIGHT), "band of both"),
            (css_color(FALSE), "band of the prediction only"),
            (css_color(MISSED), "band of the truth only"),
        ],
        pictures=[
            (heading, [_draw_pair(matched, pair) for pair in group])
            for heading, group in groups.items()
        ],
    )


def _draw_pair(matched: _Matched, pair: Pair) -> Picture:
    image_id = pair.truth["image_id"]
    photo = matched.read_photo(image_id)
    height, width = photo.shape[:2]
    drawn = draw_instance(
        photo,
        decode_mask(pair.truth["segmentation"]),
        decode_mask(pair.detection["segmentation"]),
        width_px=band_px(height=height, width=width, dilation_ratio=matched.ratio),
    )
    name = matched.names[pair.truth["category_id"]]
    return encode_picture(
        drawn,
        f"{name}, boundary IoU {pair.boundary_iou:.2f}, score {pair.detection['score']:.2f}, "
        f"{matched.files[image_id]}",
    )


def _build_confusion(matched: _Matched, title: str) -> Section:
    counts = matched.matches.confusion
    names = [matched.names[each["id"]] for each in matched.truth["categories"]]
    text = (
        f"Detections {matched.scope} with a score of at least {SCORE}, matched with the truth "
        f"regardless of the category at a mask IoU of {IOU}."
    )
    pairs = [
        (int(count), names[row], names[column])
        for (row, column), count in np.ndenumerate(counts[:-1, :-1])
        if count and row != column
    ]
    pairs.sort(key=lambda each: -each[0])
    rows = [["true", "predicted", "objects"], *([a, b, str(n)] for n, a, b in pairs[:_CONFUSIONS])]
    gaps = matched.caveats + ([] if pairs else ["No object was found as another category."])
    found = counts[:-1, :-1]
    cards = [
        ("right category", str(int(np.trace(found)))),
        ("other category", str(int(found.sum() - np.trace(found)))),
        ("missed objects", str(int(counts[:-1, -1].sum()))),
        ("detections of nothing", str(int(counts[-1, :-1].sum()))),
    ]
    drawn = []
    if len(names) <= _MATRIX_SIDE:
        with np.errstate(invalid="ignore"):
            shares = counts / counts.sum(axis=1, keepdims=True)
        drawn = [
            plot_matrix(
                shares,
                rows=[*names, "no object"],
                columns=[*names, "missed"],
                caption="Confusion of categories",
            )
        ]
    tables = [Table(rows=rows, folded="The most frequent confusions")] if pairs else []
    return Section(title=title, text=text, gaps=gaps, cards=cards, charts=drawn, tables=tables)


def _build_calibration(matched: _Matched, title: str) -> Section:
    scores, is_right = matched.matches.scores, matched.matches.is_right
    if not len(scores):
        return Section(title=title, gaps=[f"There are no detections {matched.scope}."])
    bins = np.minimum((scores * 10).astype(int), 9)
    counts = np.bincount(bins, minlength=10)
    with np.errstate(invalid="ignore"):
        means = np.bincount(bins, scores, minlength=10) / counts
        rates = np.bincount(bins, is_right, minlength=10) / counts
    error = float(np.nansum(counts * np.abs(means - rates)) / counts.sum())
    return Section(
        title=title,
        text=f"How often detections {matched.scope} are right, by their score: a detection is "
        f"right if it matches an object of its category at a mask IoU of {IOU}. On the diagonal a "
        "score is the probability of being right.",
        gaps=matched.caveats,
        cards=[("expected calibration error", f"{error:.3f}"), ("detections", str(len(scores)))],
        charts=[plot_calibration(means, rates, counts)],
    )


def _label(metric: str) -> str:
    return metric.replace("_ap", " AP")


def _format(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _format_change(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.1f}"
