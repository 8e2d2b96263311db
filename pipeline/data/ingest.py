"""Turn a data set into shards: everything is validated, and every dropped image is counted.

The driver makes the index of the source and, unless told otherwise, the first shards; those that it
does not finish in the time that Ray takes to start are made by Ray Data, one task per shard, so
memory does not grow with the number of files. A second run keeps finished shards and makes the
others. The bytes do not depend on interruptions or the number of workers.
"""

import hashlib
import json
import logging
import math
import os
import re
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

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
from pipeline.data.learnable import describe_gaps, describe_unlearnable
from pipeline.data.manifest import Manifest, manifest_uri, read_manifest, write_manifest
from pipeline.data.problems import (
    Problem,
    ProblemCounts,
    count_severity,
    encode_rejects,
    format_problems,
)
from pipeline.data.schema import FIELD_SIDE
from pipeline.data.shards import (
    ROW_GROUP_ROWS,
    ShardReport,
    ShardSettings,
    make_shard,
    pack,
    peak_rss_mb,
)
from pipeline.data.source_index import SourceIndex
from pipeline.data.sources.bdd import list_bdd
from pipeline.data.sources.cityscapes import list_cityscapes, list_cityscapes_semantic
from pipeline.data.sources.coco import list_coco
from pipeline.data.sources.label_maps import list_label_maps
from pipeline.data.sources.lvis import list_lvis
from pipeline.errors import DatasetError
from pipeline.progress import log_progress
from pipeline.text import format_count

__all__ = ["CocoIngest", "choose_rows_per_shard", "ingest_dataset"]

REJECTS_FILE = "rejects.parquet"

_log = logging.getLogger(__name__)

_MEANING_VERSION = 1
"""Raise it when the meaning of equal rows changes."""


_ALONE_S = 15.0
"""Work in this process for about as long as Ray takes to start on two cores."""


def ingest_dataset(config: IngestConfig) -> dict[str, Any]:
    """Validate a data set and write it as shards; dataset.json comes last.

    Returns:
        images, annotations, rejects, shards, seconds and more, for the RESULT line.

    Raises:
        DatasetError: a rule is broken and `on_bad` is "stop", or nothing is left to learn from.
        SetupError: Ray cannot be used.
        StorageError: a file cannot be read or written.
    """
    started = time.perf_counter()
    # With the default, Ray is not needed for most small data sets.
    if config.workers > 0 or (config.workers and os.environ.get("RAY_ADDRESS")):
        from pipeline.ray_connection import check_environment  # noqa: PLC0415  imports ray

        check_environment()
    index = _list_source(config)
    if any(problem.severity == "stop" for problem in index.problems):
        raise DatasetError(_format_refusal(config, index, ProblemCounts(index.problems)))
    source = _describe_source(config, index)
    _check_out(config, source)
    reports = sorted(_make_shards(config, index), key=lambda report: report.info.file)
    # Problems of the index itself have nothing to fix.
    action = "found" if config.on_bad == "stop" else "dropped"
    problems = [replace(problem, action=action) for problem in index.problems]
    problems += [problem for report in reports for problem in report.problems]
    counts = ProblemCounts(problems)
    for report in reports:
        for kind, count in report.notice_counts.items():
            counts.add(kind, *report.notices[kind], count=count)
    if config.on_bad == "stop" and problems:
        storage.write_bytes_atomic(_rejects_uri(config), encode_rejects(problems))
        raise DatasetError(_format_refusal(config, index, counts))
    manifest = _make_manifest(config, index, reports, problems, source)
    _require_content(manifest, index, counts)
    _finish(config, manifest, problems)
    _log_summary(index, manifest, problems, counts)
    return _make_result(config, manifest, reports, time.perf_counter() - started)


def choose_rows_per_shard(images: int) -> int:
    """Choose the shard size: 64 shards of a small data set, at most 512 rows (80 MB of COCO)."""
    groups = -(-images // (64 * ROW_GROUP_ROWS))
    return ROW_GROUP_ROWS * min(max(groups, 1), 16)


def _list_source(config: IngestConfig) -> SourceIndex:
    match config:
        case CocoIngest():
            return list_coco(config)
        case LvisIngest():
            return list_lvis(config)
        case CityscapesIngest():
            return list_cityscapes(config)
        case CityscapesSemanticIngest():
            return list_cityscapes_semantic(config)
        case BddIngest():
            return list_bdd(config)
        case SemanticIngest():
            return list_label_maps(config)
        case _:
            raise TypeError(f"no source for {type(config).__name__}")


def _describe_source(config: IngestConfig, index: SourceIndex) -> str:
    """Describe what the shards are made from and how, independent of the location."""
    rows = config.rows_per_shard or choose_rows_per_shard(len(index.images))
    return (
        f"{config.verb} {config.split} {index.source} on_bad {config.on_bad} "
        f"rows_per_shard {rows} max_pixels {config.max_pixels}"
    )


def _check_out(config: IngestConfig, source: str) -> None:
    """Refuse to replace a finished data set that was made from something else."""
    uri = manifest_uri(config.out)
    if not storage.exists(uri):
        return
    try:
        existing = read_manifest(config.out).source
    except DatasetError as error:
        existing = f"not readable: {error}"
    if existing == source:
        return
    if config.overwrite:
        # From here on the folder counts as incomplete.
        storage.remove(uri)
        return
    raise DatasetError(
        f"{config.out} holds a finished data set that was made differently.\n"
        f"  existing:  {existing}\n"
        f"  requested: {source}\n"
        "Choose another --out, or replace it with --overwrite."
    )


def _make_shards(config: IngestConfig, index: SourceIndex) -> Iterator[ShardReport]:
    """Make all shards and log the progress."""
    settings = ShardSettings(
        rules=index.rules,
        mounts={name: storage.absolute(uri) for name, uri in index.mounts.items()},
        num_categories=len(index.categories),
        out=storage.absolute(config.out),
        on_bad=config.on_bad,
        max_pixels=config.max_pixels,
    )
    total = len(index.images)
    rows = config.rows_per_shard or choose_rows_per_shard(total)
    # Packed entries are removed from the index, to free their memory.
    index.images.reverse()
    parts: list[tuple[str, bytes]] = []
    while index.images:
        part = [index.images.pop() for _ in range(min(rows, len(index.images)))]
        parts.append((f"part-{len(parts):05d}.parquet", pack(part)))
    _log.info(
        "ingest: %s in %s of %d rows",
        *(format_count(total, "image"), format_count(len(parts), "shard"), rows),
    )
    problems = len(index.problems)
    for report in log_progress(
        _run_tasks(parts, settings, config.workers),
        "ingest",
        total=total,
        images_of=lambda report: report.images,
        detail=lambda: f"problems {problems}",  # noqa: B023  called between two reports
    ):
        problems += len(report.problems)
        yield report


def _run_tasks(
    parts: list[tuple[str, bytes]], settings: ShardSettings, workers: int
) -> Iterator[ShardReport]:
    alone_s = {-1: _ALONE_S, 0: math.inf}.get(workers, 0.0)
    started = time.perf_counter()
    waiting = deque(parts)
    parts.clear()
    while waiting and time.perf_counter() - started < alone_s:
        yield make_shard(*waiting.popleft(), settings)
    if waiting:
        from pipeline.data.ingest_tasks import make_shards_on_ray  # noqa: PLC0415  imports ray

        if alone_s:
            _log.info("ingest: %d shards left for Ray, on every CPU", len(waiting))
        # Emptied as they are passed on, to free their memory.
        parts += waiting
        waiting.clear()
        yield from make_shards_on_ray(parts, settings, workers=workers)


def _format_refusal(config: IngestConfig, index: SourceIndex, problems: ProblemCounts) -> str:
    """Format all problems and the commands that continue."""
    count = count_severity(problems, "stop", "bad")
    text = f"{format_count(count, 'problem')} in {index.title}\n\n{format_problems(problems)}\n\n"
    if problems.counts["image_missing"] + problems.counts["label_missing"] and index.download:
        text += f"{index.download}.\n\n"
    if count_severity(problems, "stop"):
        return text + (
            "No image was checked and nothing was written. Fix the problems that always stop, then "
            f"run again:\n  {config.command(config.on_bad)}"
        )
    text += (
        f"All of them: {_rejects_uri(config)}. No data set was finished. Fix them and run again, "
        "or continue without them:\n"
        f"  {config.command('drop')}\n"
        "      drops these images, with their annotations, and these annotations (notices stay)"
    )
    if not index.rules.fix:
        return text
    return text + f"\n  {config.command('fix')}\n      {index.rules.fix}, drops the rest"


def _log_summary(
    index: SourceIndex, manifest: Manifest, problems: list[Problem], counts: ProblemCounts
) -> None:
    if counts.counts:
        _log.info("%s", format_problems(counts))
    for gap in describe_gaps(manifest):
        _log.warning("ingest: %s: %s", index.title, gap)
    _log.info("ingest: kept %s", _describe_kept(index, manifest, problems))


def _describe_kept(index: SourceIndex, manifest: Manifest, problems: Iterable[Problem]) -> str:
    """Say how much of a source is in the shards, and what was dropped with its image."""
    images = f"{manifest.images} of {index.listed_images} images"
    if manifest.task == "semantic":
        return images
    listed, kept = index.listed_annotations, manifest.annotations
    if listed is None:
        return f"{images} and {kept} annotations"
    refused = [
        each
        for each in problems
        if each.severity == "bad" and each.action != "fixed" and "file_name" not in each.entry
    ]
    # Copies of an entry have one problem each, and another entry may have several.
    copies = sum(each.kind == "duplicate_annotation_id" for each in refused)
    others = {each.raw for each in refused if each.kind != "duplicate_annotation_id"}
    with_image = listed - kept - copies - len(others)
    text = f"{images} and {kept} of {listed} annotations"
    return f"{text}; {with_image} went with their images" if with_image else text


def _make_manifest(
    config: IngestConfig,
    index: SourceIndex,
    reports: list[ShardReport],
    problems: list[Problem],
    source: str,
) -> Manifest:
    shards = tuple(report.info for report in reports if report.info.rows)
    # Only what a model learns from, so that later versions give equal data the same fingerprint.
    names = [
        {name: getattr(each, name) for name in ("category_id", "category_index", "name")}
        for each in index.categories
    ]
    content = [_MEANING_VERSION, FIELD_SIDE, names]
    digests = [shard.digest for shard in shards]
    fingerprint = hashlib.sha256(json.dumps([content, digests]).encode()).hexdigest()
    notices: Counter[str] = Counter()
    for report in reports:
        notices.update(report.notice_counts)
    return Manifest(
        task=index.rules.task,
        categories=index.categories,
        category_images=_add_lists(report.category_images for report in reports),
        category_px=_add_lists(report.category_px for report in reports),
        shards=shards,
        images=sum(shard.rows for shard in shards),
        annotations=sum(shard.annotations for shard in shards),
        federated=index.rules.federated,
        fingerprint=fingerprint[:16],
        source=source,
        on_bad=config.on_bad,
        rejects=_count_kinds(problems, "dropped"),
        fixed=_count_kinds(problems, "fixed"),
        notices=dict(sorted(notices.items())),
    )


def _require_content(manifest: Manifest, index: SourceIndex, counts: ProblemCounts) -> None:
    """Refuse a data set of which nothing is left; one without any label may be meant."""
    reason = describe_unlearnable(manifest)
    listed = index.listed_annotations
    if not manifest.images:
        text = f"no valid image in {index.title}, nothing was written"
    elif reason and manifest.annotations:
        text = f"{index.title}: {reason} and run again. No data set was finished"
    elif reason and listed:
        text = f"0 of {listed} annotations in {index.title} can be kept, no data set was finished"
    else:
        return
    if count_severity(counts, "bad"):
        text += f". Fix these problems and run again\n\n{format_problems(counts)}"
    raise DatasetError(text)


def _add_lists(counts: Iterable[list[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*counts, strict=True)))


def _count_kinds(problems: Iterable[Problem], action: str) -> dict[str, int]:
    counts = Counter(problem.kind for problem in problems if problem.action == action)
    return dict(sorted(counts.items()))


def _finish(config: IngestConfig, manifest: Manifest, problems: list[Problem]) -> None:
    """Remove the files of other runs, then declare the folder complete."""
    mine = {shard.file for shard in manifest.shards}
    for uri in storage.list_files(config.out):
        name = uri.rsplit("/", 1)[-1]
        # Shards of other runs, and drafts of shards that were killed.
        if re.fullmatch(r"\.?part-\d{5,}\.parquet(\..*\.draft)?", name) and name not in mine:
            storage.remove(uri)
    storage.write_bytes_atomic(_rejects_uri(config), encode_rejects(problems))
    write_manifest(config.out, manifest)


def _make_result(
    config: IngestConfig, manifest: Manifest, reports: list[ShardReport], elapsed_s: float
) -> dict[str, Any]:
    return {
        "images": manifest.images,
        "annotations": manifest.annotations,
        "rejects": sum(manifest.rejects.values()),
        "fixed": sum(manifest.fixed.values()),
        "notices": sum(manifest.notices.values()),
        "shards": len(manifest.shards),
        "shards_kept": sum(report.was_reused for report in reports),
        "seconds": round(elapsed_s, 2),
        "images_per_second": round(sum(report.images for report in reports) / elapsed_s, 1),
        "peak_rss_mb": peak_rss_mb(),
        "task_peak_rss_mb": max(report.peak_rss_mb for report in reports),
        "fingerprint": manifest.fingerprint,
        "out": config.out,
    }


def _rejects_uri(config: IngestConfig) -> str:
    return storage.join(config.out, REJECTS_FILE)
