"""Refine all masks of a file or folder: check, stream photos, write, and compare with a truth."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from bsm.refine.refiner import Refiner
from pipeline import storage
from pipeline.data.photo import decode_image
from pipeline.data.problems import ProblemCounts, format_problems
from pipeline.errors import DatasetError, RecipeError
from pipeline.evaluation.ap_engine import MetricName
from pipeline.evaluation.bands import COCO_DILATION_RATIO
from pipeline.evaluation.coco_files import read_json
from pipeline.evaluation.mask_refinement import MASK_BYTES, MAX_CHANGE, RefinedMask
from pipeline.evaluation.metrics import METRIC_PREFIX, Metrics, evaluate_metrics
from pipeline.evaluation.refinement_scores import RefinementScores, format_scores, join_scores
from pipeline.evaluation.table import format_notices
from pipeline.progress import log_progress
from pipeline.refine.label_folder import LabelFolder
from pipeline.refine.mask_files import MaskFile
from pipeline.refine.photo_finder import PhotoFinder
from pipeline.refine.photo_masks import MakeRefiner, MaskSource, PhotoMasks, PhotoResult
from pipeline.refine.refine_photo import PhotoRefiner
from pipeline.report.contact_sheet import MAX_TILES, draw_contact_sheet, draw_tile
from pipeline.text import format_score, format_table

_METRICS: tuple[MetricName, ...] = ("segm", "boundary")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineOptions:
    """Masks to refine, their photos, and the file to write."""

    images: str
    """Folder or URI of the photos."""
    out: str
    """File to write; for label PNGs a folder."""
    detections: str = ""
    """COCO results file, or detections.json of jobs/predict.py."""
    annotations: str = ""
    """COCO annotation file."""
    labels: str = ""
    """Folder of label PNGs."""
    truth: str = ""
    """COCO annotation file to compare detections with."""
    max_change: float = MAX_CHANGE
    """Masks that would change more (1 - IoU) are kept."""
    workers: int = 0
    """Workers of Ray Data; 0 refines in this process, -1 takes one per CPU, or per GPU."""
    use_gpu: bool = False
    """Use a GPU, one per worker; without workers, the device of the model."""


class _Totals:
    """Counts over all masks, and those that changed most."""

    def __init__(self) -> None:
        self.masks = self.refined = self.kept = self.photos_left_out = 0
        self._changes: list[float] = []
        self._scores: dict[int, RefinementScores] = {}
        self.problems = ProblemCounts()
        self._most: list[tuple[float, int, int, RefinedMask]] = []

    def add(self, index: int, photo: PhotoMasks, result: PhotoResult) -> None:
        self.masks += len(photo.masks)
        self.photos_left_out += result.left_out
        self.kept += sum(mask.kept for mask in result.refined)
        for kind, reason in result.notices:
            self.problems.add(kind, f"{photo.name}: {reason}")
        changed = [
            (mask.change, index, place, mask)
            for place, mask in enumerate(result.refined)
            if mask.change > 0 and not mask.kept
        ]
        self.refined += len(changed)
        self._changes += [change for change, *_ in changed]
        self._scores[index] = result.scores
        self._most = sorted([*self._most, *changed], key=lambda each: (-each[0], *each[1:3]))
        del self._most[MAX_TILES:]

    @property
    def mean_change(self) -> float:
        # Rounded once, so that it does not depend on the order in which photos finish.
        return math.fsum(self._changes) / max(len(self._changes), 1)

    def join_scores(self) -> RefinementScores:
        return join_scores([self._scores[index] for index in sorted(self._scores)])

    def draw_tiles(self, photos: Sequence[PhotoMasks], images: str) -> list[Image.Image]:
        tiles = []
        for change, index, place, mask in self._most:
            photo = photos[index]
            data = storage.read_bytes(storage.join(images, photo.name))
            tiles.append(
                draw_tile(
                    f"{photo.name}  {change:.0%}",
                    decode_image(data, name=photo.name),
                    before=photo.masks[place].rle,
                    after=mask.rle,
                )
            )
        return tiles


def refine_files(model: Refiner, model_uri: str, options: RefineOptions) -> dict[str, Any]:
    """Refine all masks of a file or folder.

    Args:
        model: in evaluation mode.
        model_uri: models:/NAME/VERSION, written into files that are objects.
        options: see `RefineOptions`.

    Returns:
        Counts, scores, seconds and files, for the RESULT line.

    Raises:
        DatasetError: all problems of files and photos, before anything is refined.
        SetupError: Ray cannot be used.
        StorageError: a file cannot be read or written.
    """
    started = time.perf_counter()
    if options.workers:
        from pipeline.ray_connection import check_environment  # noqa: PLC0415  imports ray

        check_environment()
    photos = PhotoFinder(options.images)
    truth: Any = read_json(options.truth) if options.truth else None
    # Evaluated first: it checks both files.
    before = _measure(truth, read_json(options.detections)) if options.truth else {}
    source = _open_source(options, photos, truth)
    if not source.photos:
        given = options.detections or options.annotations or options.labels
        _log.warning("refine: %s holds no masks to refine", given)
    totals = _Totals()
    refiner = partial(
        PhotoRefiner,
        images=photos.root,
        max_change=options.max_change,
        mask_bytes=MASK_BYTES,
    )
    refining = time.perf_counter()
    for index, result in log_progress(
        _refine(model, source.photos, refiner, options), "refine", total=len(source.photos)
    ):
        source.store(index, result.refined)
        totals.add(index, source.photos[index], result)
    seconds = time.perf_counter() - refining
    _report_problems(totals, source)
    source.write(model_uri)
    after = _measure(truth, source.entries) if isinstance(source, MaskFile) and truth else {}
    return {
        "photos": len(source.photos),
        "photos_left_out": totals.photos_left_out,
        "masks": totals.masks,
        "refined": totals.refined,
        "kept": totals.kept,
        **source.counts,
        "mean_change": round(totals.mean_change, 4),
        **_compare(before, after, totals.join_scores()),
        "out": options.out,
        "sheet": _draw_sheet(totals, source, options, photos.root),
        "refine_seconds": round(seconds, 3),
        "seconds": round(time.perf_counter() - started, 3),
        "model": model_uri,
    }


def check_options(options: RefineOptions) -> None:
    """Check options against each other.

    Raises:
        RecipeError: all problems.
    """
    given = [flag for flag in ("detections", "annotations", "labels") if getattr(options, flag)]
    problems = []
    if len(given) != 1:
        problems.append(
            f"give one of --detections, --annotations and --labels, got "
            f"{' and '.join(f'--{flag}' for flag in given) or 'none'}"
        )
    if options.truth and not options.detections:
        problems.append("--truth is compared with --detections only")
    if not 0 <= options.max_change <= 1:
        problems.append(f"--max-change must be in [0, 1], got {options.max_change:g}")
    if options.workers < -1:
        problems.append(f"--workers must be -1 or more, got {options.workers}")
    if problems:
        raise RecipeError("\n".join(problems))


def _open_source(options: RefineOptions, photos: PhotoFinder, truth: Any) -> MaskSource:  # noqa: ANN401
    if options.labels:
        return LabelFolder(options.labels, photos, out_uri=options.out)
    uri = options.detections or options.annotations
    if storage.absolute(options.out) in map(storage.absolute, filter(None, (uri, options.truth))):
        raise DatasetError(f"--out {options.out} would overwrite an input; use another file")
    return MaskFile(
        uri,
        photos,
        out_uri=options.out,
        truth=truth,
        are_annotations=bool(options.annotations),
    )


def _refine(
    model: Refiner,
    photos: Sequence[PhotoMasks],
    make_refiner: MakeRefiner,
    options: RefineOptions,
) -> Iterator[tuple[int, PhotoResult]]:
    if options.workers == 0 or not photos:
        refine = make_refiner(model)
        return ((index, refine(photo)) for index, photo in enumerate(photos))
    from pipeline.refine.ray_photos import refine_on_ray  # noqa: PLC0415  imports ray

    return refine_on_ray(
        model, photos, make_refiner, workers=options.workers, use_gpu=options.use_gpu
    )


def _report_problems(totals: _Totals, source: MaskSource) -> None:
    if not totals.problems.counts:
        return
    found = format_problems(totals.problems)
    if totals.photos_left_out and totals.photos_left_out == len(source.photos):
        raise DatasetError(f"none of the photos can be read, nothing was refined\n\n{found}")
    _log.warning("refine: masks of %d photos kept as given\n\n%s", totals.photos_left_out, found)


def _measure(truth: Any, content: Any) -> dict[MetricName, Metrics]:  # noqa: ANN401  JSON
    rows: Any = content.get("detections") if isinstance(content, dict) else content
    return evaluate_metrics(truth, rows, metrics=_METRICS)


def _compare(
    before: dict[MetricName, Metrics], after: dict[MetricName, Metrics], scores: RefinementScores
) -> dict[str, Any]:
    """Print the scores before and after, and return them for the RESULT line."""
    if not after:
        return {}
    rows = [["", "given", "refined", "change", "large: given", "refined", "change"]]
    numbers: dict[str, float] = {}
    for metric in _METRICS:
        prefix, cells = METRIC_PREFIX[metric], []
        for key in ("ap", "ap_large"):
            old, new = getattr(before[metric], key), getattr(after[metric], key)
            numbers |= {f"given_{prefix}_{key}": old, f"{prefix}_{key}": new}
            change = "-" if np.isnan(new) else f"{new - old:+.4f}"
            cells += [format_score(old), format_score(new), change]
        rows.append([f"{prefix} AP", *cells])
    table = format_table(rows, align="<>", min_width=7)
    notices = format_notices(dict.fromkeys(n for each in after.values() for n in each.notices))
    lines = [*table, "", *format_scores(scores, ratio=COCO_DILATION_RATIO), *notices]
    _log.info("%s", "\n".join(lines))
    numbers |= scores.means()
    finite = {name: None if np.isnan(value) else value for name, value in numbers.items()}
    return {"matched": len(scores.area_px), **finite}


def _draw_sheet(totals: _Totals, source: MaskSource, options: RefineOptions, images: str) -> str:
    """Draw the masks that changed most, beside the output; return the file, "" without any."""
    tiles = totals.draw_tiles(source.photos, images)
    if not tiles:
        return ""
    sheet = f"{options.out.rstrip('/').removesuffix('.json')}.png"
    storage.write_bytes_atomic(sheet, draw_contact_sheet(tiles))
    return sheet
