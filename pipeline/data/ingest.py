"""Turn a data set into shards: everything is checked, nothing is left out without a count.

A source lists the data set here, in the driver; files are read, checked and written by Ray Data,
one task a shard, so memory does not grow with their number. A second run finds finished shards and
makes the others; the bytes are the same whatever was interrupted, and on any number of workers.
"""

import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from pipeline import storage
from pipeline.data.ingest_config import (
    BddIngest,
    CityscapesIngest,
    CityscapesSemanticIngest,
    CocoIngest,
    IngestConfig,
    LvisIngest,
    SemanticIngest,
)
from pipeline.data.manifest import Manifest, manifest_uri, read_manifest, write_manifest
from pipeline.data.problems import Problem, Tally, rejects_file
from pipeline.data.schema import FIELD_SIDE
from pipeline.data.shards import (
    ROW_GROUP_ROWS,
    OnBad,
    ShardReport,
    ShardSettings,
    make_shard,
    pack,
    peak_rss_mb,
)
from pipeline.data.source_index import (
    AnnotationRules,
    FrameRules,
    LabelRules,
    Listing,
    Rules,
    is_federated,
    task_of,
)
from pipeline.data.sources.bdd import list_bdd
from pipeline.data.sources.cityscapes import list_cityscapes, list_cityscapes_semantic
from pipeline.data.sources.coco import list_coco
from pipeline.data.sources.label_maps import list_label_maps
from pipeline.data.sources.lvis import list_lvis
from pipeline.errors import DatasetError

__all__ = [
    "CocoIngest",
    "ingest_bdd",
    "ingest_cityscapes",
    "ingest_cityscapes_semantic",
    "ingest_coco",
    "ingest_lvis",
    "ingest_semantic",
    "rows_per_shard",
]

REJECTS_FILE = "rejects.parquet"

_log = logging.getLogger(__name__)

_MEANING_VERSION = 1
"""Raise it when equal rows come to mean something else."""

_PROGRESS_EVERY_S = 5.0

Config = TypeVar("Config", bound=IngestConfig)


def ingest_coco(config: CocoIngest) -> dict[str, Any]:
    """Check a data set in the COCO layout and write it as shards; see `_ingest`."""
    return _ingest(config, list_coco)


def ingest_lvis(config: LvisIngest) -> dict[str, Any]:
    """Check LVIS and write it as shards; see `_ingest`."""
    return _ingest(config, list_lvis)


def ingest_cityscapes(config: CityscapesIngest) -> dict[str, Any]:
    """Check the instances of Cityscapes and write them as shards; see `_ingest`."""
    return _ingest(config, list_cityscapes)


def ingest_cityscapes_semantic(config: CityscapesSemanticIngest) -> dict[str, Any]:
    """Check the label maps of Cityscapes and write them as shards; see `_ingest`."""
    return _ingest(config, list_cityscapes_semantic)


def ingest_bdd(config: BddIngest) -> dict[str, Any]:
    """Check the label maps of BDD100K and write them as shards; see `_ingest`."""
    return _ingest(config, list_bdd)


def ingest_semantic(config: SemanticIngest) -> dict[str, Any]:
    """Check anyone's label maps and write them as shards; see `_ingest`."""
    return _ingest(config, list_label_maps)


def _ingest(config: Config, list_source: Callable[[Config], Listing]) -> dict[str, Any]:
    """Check a data set and write it as shards, with dataset.json when all is there.

    Returns:
        images, annotations, rejects, shards, seconds and more, for the RESULT line.

    Raises:
        DatasetError: something breaks a rule and `on_bad` is "stop", or there is nothing to ingest.
        StorageError: something cannot be read or written.
    """
    started = time.perf_counter()
    listing = list_source(config)
    if any(problem.severity == "stop" for problem in listing.problems):
        raise DatasetError(_refusal(config, listing, Tally.of(listing.problems)))
    source = _source(config, listing)
    _check_out(config, source)
    reports = list(_watched(config, listing, started))
    reports.sort(key=lambda report: report.info.file)
    problems = [*_from_list(listing.problems, config.on_bad), *_joined(reports)]
    tally = _tally(problems, reports)
    if config.on_bad == "stop" and problems:
        storage.write_bytes_atomic(_beside(config, REJECTS_FILE), rejects_file(problems))
        raise DatasetError(_refusal(config, listing, tally))
    manifest = _manifest(config, listing, reports, problems, source)
    if not manifest.images:
        raise DatasetError(f"no image is left, nothing was written\n\n{tally.table()}")
    _finish(config, manifest, problems)
    if tally.counts:
        _log.info("%s", tally.table())
    listed = listing.listed_annotations
    of_all = "" if listed is None else f"of {listed} "
    _log.info(
        "ingest: kept %d of %d images and %d %sannotations",
        *(manifest.images, listing.listed_images, manifest.annotations, of_all),
    )
    return _result(config, manifest, reports, time.perf_counter() - started)


def rows_per_shard(images: int) -> int:
    """Choose a shard's size: 64 shards of a small data set, at most 512 rows (80 MB of COCO)."""
    groups = -(-images // (64 * ROW_GROUP_ROWS))
    return ROW_GROUP_ROWS * min(max(groups, 1), 16)


def _source(config: IngestConfig, listing: Listing) -> str:
    """Name what the shards are made from and how, without naming the place."""
    rows = config.rows_per_shard or rows_per_shard(len(listing.images))
    return (
        f"{config.verb} {config.split} {listing.source} on_bad {config.on_bad} "
        f"rows_per_shard {rows} max_pixels {config.max_pixels}"
    )


def _check_out(config: IngestConfig, source: str) -> None:
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


def _watched(config: IngestConfig, listing: Listing, started: float) -> Iterator[ShardReport]:
    """Make all shards, with a line of progress now and then."""
    settings = ShardSettings(
        rules=listing.rules,
        mounts={name: storage.absolute(place) for name, place in listing.mounts.items()},
        num_categories=len(listing.categories),
        out=storage.absolute(config.out),
        on_bad=config.on_bad,
        max_pixels=config.max_pixels,
    )
    total = len(listing.images)
    rows = config.rows_per_shard or rows_per_shard(total)
    # The entries are let go as they are packed: from here on they are on their way.
    listing.images.reverse()
    parts: list[tuple[str, bytes]] = []
    while listing.images:
        part = [listing.images.pop() for _ in range(min(rows, len(listing.images)))]
        parts.append((f"part-{len(parts):05d}.parquet", pack(part)))
    _log.info("ingest: %d images in %d shards of %d rows", total, len(parts), rows)
    images, found = 0, len(listing.problems)
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


def _from_list(problems: list[Problem], on_bad: OnBad) -> list[Problem]:
    """Mark what the list itself lacks as left out, unless ingest stops."""
    action = "found" if on_bad == "stop" else "dropped"
    return [replace(problem, action=action) for problem in problems]


def _tally(problems: list[Problem], reports: Iterable[ShardReport]) -> Tally:
    tally = Tally.of(problems)
    for report in reports:
        for kind, count in report.notice_counts.items():
            tally.add(kind, report.notices[kind], count=count)
    return tally


def _refusal(config: IngestConfig, listing: Listing, tally: Tally) -> str:
    """Say what is wrong and how to go on."""
    count = tally.total("stop", "bad")
    text = f"{count} problems in {listing.title}\n\n{tally.table()}\n\n"
    if tally.counts["image_missing"] + tally.counts["label_missing"] and listing.where:
        text += f"{listing.where}.\n\n"
    if tally.total("stop"):
        return text + (
            "Images were not looked at yet and nothing was written: mend what always stops, then "
            f"run again:\n  {config.command(config.on_bad)}"
        )
    text += (
        f"All of them: {_beside(config, REJECTS_FILE)}. No data set was finished. Mend them and "
        "run again, or go on without them:\n"
        f"  {config.command('drop')}\n"
        "      leaves out every image and annotation listed above (notices stay)"
    )
    repair = _repair(listing.rules)
    if not repair:
        return text
    return text + f"\n  {config.command('fix')}\n      {repair}, leaves out the rest"


def _repair(rules: Rules) -> str:
    """Say what --on-bad fix does; "" where it does no more than drop."""
    match rules:
        case AnnotationRules():
            return "cuts boxes that reach outside at the image's border"
        case LabelRules():
            return "takes the numbers of palettes as values"
        case FrameRules():
            return ""


def _manifest(
    config: IngestConfig,
    listing: Listing,
    reports: list[ShardReport],
    problems: list[Problem],
    source: str,
) -> Manifest:
    shards = tuple(report.info for report in reports if report.info.rows)
    # What a model learns from: a later version of this package gives the same name to the same.
    names = [
        {name: getattr(each, name) for name in ("category_id", "category_index", "name")}
        for each in listing.categories
    ]
    content = [_MEANING_VERSION, FIELD_SIDE, names]
    digests = [shard.digest for shard in shards]
    fingerprint = hashlib.sha256(json.dumps([content, digests]).encode()).hexdigest()
    noticed: Counter[str] = Counter()
    for report in reports:
        noticed.update(report.notice_counts)
    return Manifest(
        task=task_of(listing.rules),
        categories=listing.categories,
        category_images=_summed(report.category_images for report in reports),
        category_px=_summed(report.category_px for report in reports),
        shards=shards,
        images=sum(shard.rows for shard in shards),
        annotations=sum(shard.annotations for shard in shards),
        federated=is_federated(listing.rules),
        fingerprint=fingerprint[:16],
        source=source,
        on_bad=config.on_bad,
        rejects=_by_kind(problems, "dropped"),
        fixed=_by_kind(problems, "fixed"),
        notices=dict(sorted(noticed.items())),
    )


def _summed(counts: Iterable[list[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*counts, strict=True)))


def _by_kind(problems: Iterable[Problem], action: str) -> dict[str, int]:
    counts = Counter(problem.kind for problem in problems if problem.action == action)
    return dict(sorted(counts.items()))


def _finish(config: IngestConfig, manifest: Manifest, problems: list[Problem]) -> None:
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
    config: IngestConfig, manifest: Manifest, reports: list[ShardReport], elapsed_s: float
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


def _beside(config: IngestConfig, name: str) -> str:
    return storage.join(config.out, name)
