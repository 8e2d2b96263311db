"""Turn a COCO data set into shards: everything is checked, nothing is left out without a count.

The annotation file is read here, in the driver; images are read, checked and written by Ray Data,
one task a shard, so memory does not grow with their number. A second run finds finished shards and
makes the others; the bytes are the same whatever was interrupted, and on any number of workers.
"""

import hashlib
import json
import logging
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pipeline import storage
from pipeline.data.examine import MAX_PIXELS
from pipeline.data.manifest import (
    Category,
    Manifest,
    manifest_uri,
    read_manifest,
    write_manifest,
)
from pipeline.data.problems import Problem, Tally, rejects_file
from pipeline.data.schema import FIELD_SIDE, SCHEMA_VERSION
from pipeline.data.shards import (
    ROW_GROUP_ROWS,
    OnBad,
    ShardReport,
    ShardSettings,
    make_shard,
    pack,
    peak_rss_mb,
)
from pipeline.data.sources.coco import CocoAnnotations, read_annotations
from pipeline.errors import DatasetError

REJECTS_FILE = "rejects.parquet"

_log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 5.0

_WIDEST_LIMIT = 2 * MAX_PIXELS
"""Pillow opens no larger image, whatever we allow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoIngest:
    """What to ingest, where to, and what to do with what breaks a rule."""

    root: str
    """Folder or URI with annotations/instances_SPLIT.json and SPLIT/*.jpg."""
    split: str
    """Name of the split."""
    out: str
    """Folder or URI for the shards."""
    annotations: str = ""
    """Annotation file, where it is not annotations/instances_SPLIT.json under root."""
    images: str = ""
    """Folder of the images, where it is not SPLIT under root."""
    on_bad: OnBad = "stop"
    """stop: list what breaks a rule, and end. drop: leave it out. fix: cut boxes at the image's
    border, leave out the rest."""
    rows_per_shard: int = 0
    """Images of one shard, a multiple of 32; 0 chooses by the number of images."""
    max_pixels: int = MAX_PIXELS
    """A larger image is refused before it is decoded."""
    workers: int = -1
    """Shards made at once on Ray; -1 takes every CPU, 0 works in this process without Ray."""
    overwrite: bool = False
    """Replace a data set in out that was made from something else."""

    def __post_init__(self) -> None:
        wrong = []
        if self.rows_per_shard < 0 or self.rows_per_shard % ROW_GROUP_ROWS:
            wrong.append(
                f"rows-per-shard must be a multiple of {ROW_GROUP_ROWS}, got {self.rows_per_shard}"
            )
        if not 1 <= self.max_pixels <= _WIDEST_LIMIT:
            wrong.append(f"max-pixels must be in 1..{_WIDEST_LIMIT}, got {self.max_pixels}")
        if self.workers < -1:
            wrong.append(f"workers must be -1 or more, got {self.workers}")
        needed = ("root", "split", "out")
        wrong += [f"{name} may not be empty" for name in needed if not getattr(self, name)]
        if wrong:
            raise DatasetError("; ".join(wrong))

    @property
    def annotations_uri(self) -> str:
        """Where the annotation file is."""
        given = self.annotations
        return given or storage.join(self.root, "annotations", f"instances_{self.split}.json")

    @property
    def images_uri(self) -> str:
        """Where the images are."""
        return storage.absolute(self.images or storage.join(self.root, self.split))

    def command(self, on_bad: OnBad) -> str:
        """Give the command that runs this with another choice."""
        words = ["python", "jobs/ingest.py", "coco"]
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in ("on_bad", "overwrite") and value != each.default:
                words += ["--" + each.name.replace("_", "-"), str(value)]
        words += ["--overwrite"] if self.overwrite else []
        return shlex.join([*words, "--on-bad", on_bad])


def ingest_coco(config: CocoIngest) -> dict[str, Any]:
    """Check a COCO data set and write it as shards, with dataset.json when all is there.

    Returns:
        images, annotations, rejects, shards, seconds and more, for the RESULT line.

    Raises:
        DatasetError: something breaks a rule and `on_bad` is "stop", or there is nothing to ingest.
        StorageError: something cannot be read or written.
    """
    started = time.perf_counter()
    _check_folder(config)
    _log.info("ingest: reading %s", config.annotations_uri)
    coco = read_annotations(config.annotations_uri)
    if any(problem.severity == "stop" for problem in coco.problems):
        raise DatasetError(_refusal(config, Tally.of(coco.problems)))
    source = _source(config, coco)
    _check_out(config, source)
    reports = list(_watched(config, coco, started))
    reports.sort(key=lambda report: report.info.file)
    problems = [*_from_file(coco.problems, config.on_bad), *_joined(reports)]
    tally = _tally(problems, reports)
    if config.on_bad == "stop" and problems:
        storage.write_bytes_atomic(_beside(config, REJECTS_FILE), rejects_file(problems))
        raise DatasetError(_refusal(config, tally))
    manifest = _manifest(config, coco.categories, reports, problems, source)
    if not manifest.images:
        raise DatasetError(f"no image is left, nothing was written\n\n{tally.table()}")
    _finish(config, manifest, problems)
    if tally.counts:
        _log.info("%s", tally.table())
    _log.info(
        "ingest: kept %d of %d images and %d of %d annotations",
        *(manifest.images, coco.listed_images, manifest.annotations, coco.listed_annotations),
    )
    return _result(config, manifest, reports, time.perf_counter() - started)


def rows_per_shard(images: int) -> int:
    """Choose a shard's size: 64 shards of a small data set, at most 512 rows (80 MB of COCO)."""
    groups = -(-images // (64 * ROW_GROUP_ROWS))
    return ROW_GROUP_ROWS * min(max(groups, 1), 16)


def _check_folder(config: CocoIngest) -> None:
    """Say at once, and in one error, what of the source is not there."""
    wrong = []
    if not storage.exists(config.annotations_uri):
        folder = storage.join(config.root, "annotations")
        found = [name.rsplit("/", 1)[-1] for name in storage.list_files(folder, suffix=".json")]
        listed = ", ".join(found[:10]) or "no annotation file"
        wrong.append(
            f"{config.annotations_uri} is not there ({folder} has {listed}); "
            "choose another --split, or name the file with --annotations"
        )
    if not storage.exists(config.images_uri):
        wrong.append(f"{config.images_uri} is not there; name the images' folder with --images")
    if wrong:
        raise DatasetError("\n".join(wrong))


def _source(config: CocoIngest, coco: CocoAnnotations) -> str:
    """Name what the shards are made from and how, without naming the place."""
    rows = config.rows_per_shard or rows_per_shard(len(coco.images))
    return (
        f"coco {config.split} annotations sha256:{coco.digest} on_bad {config.on_bad} "
        f"rows_per_shard {rows} max_pixels {config.max_pixels}"
    )


def _check_out(config: CocoIngest, source: str) -> None:
    """Leave a finished data set alone when it was made from something else."""
    place = manifest_uri(config.out)
    if not storage.exists(place):
        return
    try:
        there = read_manifest(config.out).source
    except DatasetError as error:
        there = f"not readable: {error}"
    if there == source:
        return
    if config.overwrite:
        # From here on the folder is not complete, whatever happens.
        storage.remove(place)
        return
    raise DatasetError(
        f"{config.out} holds a finished data set that was made differently.\n"
        f"  there: {there}\n"
        f"  asked: {source}\n"
        "Choose another --out, or replace it with --overwrite."
    )


def _watched(config: CocoIngest, coco: CocoAnnotations, started: float) -> Iterator[ShardReport]:
    """Make all shards, with a line of progress now and then."""
    settings = ShardSettings(
        images_uri=config.images_uri,
        out=storage.absolute(config.out),
        category_index={each.category_id: each.category_index for each in coco.categories},
        on_bad=config.on_bad,
        max_pixels=config.max_pixels,
    )
    total = len(coco.images)
    rows = config.rows_per_shard or rows_per_shard(total)
    # The parsed entries are let go as they are packed: from here on they are on their way.
    coco.images.reverse()
    parts: list[tuple[str, bytes]] = []
    while coco.images:
        part = [coco.images.pop() for _ in range(min(rows, len(coco.images)))]
        parts.append((f"part-{len(parts):05d}.parquet", pack(part)))
    _log.info("ingest: %d images in %d shards of %d rows", total, len(parts), rows)
    images, found = 0, len(coco.problems)
    told = time.perf_counter()
    for report in _make(parts, settings, config.workers):
        yield report
        images += report.images
        found += len(report.problems)
        now = time.perf_counter()
        if now - told >= _PROGRESS_EVERY_S or images == total:
            told = now
            rate = images / (now - started)
            left = (total - images) / rate
            _log.info(
                "ingest: images %d/%d  %.1f img/s  problems %d  eta %.0f s",
                *(images, total, rate, found, left),
            )


def _make(
    parts: list[tuple[str, bytes]], settings: ShardSettings, workers: int
) -> Iterator[ShardReport]:
    if workers == 0 or not parts:
        return (make_shard(file, packed, settings) for file, packed in parts)
    from pipeline.data.ingest_tasks import make_on_ray  # noqa: PLC0415  Ray only where it is used

    return make_on_ray(parts, settings, workers=workers)


def _joined(reports: Iterable[ShardReport]) -> list[Problem]:
    return [problem for report in reports for problem in report.problems]


def _from_file(problems: list[Problem], on_bad: OnBad) -> list[Problem]:
    """Mark what the annotation file itself lacks as left out, unless ingest stops."""
    action = "found" if on_bad == "stop" else "dropped"
    return [replace(problem, action=action) for problem in problems]


def _tally(problems: list[Problem], reports: Iterable[ShardReport]) -> Tally:
    tally = Tally.of(problems)
    for report in reports:
        for kind, count in report.notice_counts.items():
            tally.add(kind, report.notices[kind], count=count)
    return tally


def _refusal(config: CocoIngest, tally: Tally) -> str:
    """Say what is wrong and how to go on."""
    name = config.annotations_uri.rsplit("/", 1)[-1]
    text = f"{tally.total('stop', 'bad')} problems in {name} and its images\n\n{tally.table()}\n\n"
    if tally.total("stop"):
        return text + (
            "Images were not looked at yet and nothing was written: mend what always stops, then "
            f"run again:\n  {config.command(config.on_bad)}"
        )
    return text + (
        f"All of them: {_beside(config, REJECTS_FILE)}. No data set was finished. Mend them and "
        "run again, or go on without them:\n"
        f"  {config.command('drop')}\n"
        "      leaves out every image and annotation listed above (notices stay)\n"
        f"  {config.command('fix')}\n"
        "      cuts boxes that reach outside at the image's border, leaves out the rest"
    )


def _manifest(
    config: CocoIngest,
    categories: tuple[Category, ...],
    reports: list[ShardReport],
    problems: list[Problem],
    source: str,
) -> Manifest:
    shards = tuple(report.info for report in reports if report.info.rows)
    content = [SCHEMA_VERSION, FIELD_SIDE, [asdict(each) for each in categories]]
    digests = [shard.digest for shard in shards]
    fingerprint = hashlib.sha256(json.dumps([content, digests]).encode()).hexdigest()
    noticed: Counter[str] = Counter()
    for report in reports:
        noticed.update(report.notice_counts)
    return Manifest(
        categories=categories,
        shards=shards,
        images=sum(shard.rows for shard in shards),
        annotations=sum(shard.annotations for shard in shards),
        fingerprint=fingerprint[:16],
        source=source,
        on_bad=config.on_bad,
        rejects=_by_kind(problems, "dropped"),
        fixed=_by_kind(problems, "fixed"),
        notices=dict(sorted(noticed.items())),
    )


def _by_kind(problems: Iterable[Problem], action: str) -> dict[str, int]:
    counts = Counter(problem.kind for problem in problems if problem.action == action)
    return dict(sorted(counts.items()))


def _finish(config: CocoIngest, manifest: Manifest, problems: list[Problem]) -> None:
    """Clear away what is left of other runs, then declare the folder complete."""
    mine = {shard.file for shard in manifest.shards}
    for place in storage.list_files(config.out):
        name = place.rsplit("/", 1)[-1]
        # Shards of other runs, and drafts of shards that were killed.
        if re.fullmatch(r"\.?part-\d{5,}\.parquet(\..*\.draft)?", name) and name not in mine:
            storage.remove(place)
    storage.write_bytes_atomic(_beside(config, REJECTS_FILE), rejects_file(problems))
    write_manifest(config.out, manifest)


def _result(
    config: CocoIngest, manifest: Manifest, reports: list[ShardReport], elapsed_s: float
) -> dict[str, Any]:
    looked_at = sum(report.images for report in reports)
    return {
        "images": manifest.images,
        "annotations": manifest.annotations,
        "rejects": sum(manifest.rejects.values()),
        "fixed": sum(manifest.fixed.values()),
        "notices": sum(manifest.notices.values()),
        "shards": len(manifest.shards),
        "shards_kept": sum(report.was_done for report in reports),
        "seconds": round(elapsed_s, 2),
        "images_per_second": round(looked_at / elapsed_s, 1),
        "peak_rss_mb": peak_rss_mb(),
        "task_peak_rss_mb": max(report.peak_rss_mb for report in reports),
        "fingerprint": manifest.fingerprint,
        "out": config.out,
    }


def _beside(config: CocoIngest, name: str) -> str:
    return storage.join(config.out, name)
