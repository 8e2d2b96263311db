"""Audit finished shards: quickly before training starts, from footers and a column, or every byte.

Ingest has dealt with the problems of the source. An audit checks that the folder still holds what
ingest declared: no shard is missing, truncated, or from another run.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.audit_label_maps import audit_planes
from pipeline.data.instance_fields import compute_squeeze_field
from pipeline.data.learnable import describe_gaps
from pipeline.data.manifest import Manifest, ShardInfo, manifest_uri, read_manifest
from pipeline.data.photo import MAX_PIXELS, check_image
from pipeline.data.problems import KINDS
from pipeline.data.run_lengths import MaskError, RunLengths, decode_counts
from pipeline.data.schema import FEDERATED, FIELD_SIDE, get_schema, hash_row
from pipeline.data.shards import read_footer
from pipeline.errors import DatasetError, StorageError
from pipeline.text import format_count

_log = logging.getLogger(__name__)

_READ_THREADS = 16
_PROGRESS_EVERY_S = 5.0
_EXAMPLES = 20


def audit(data: str, *, deep: bool = False) -> dict[str, Any]:
    """Audit a folder of shards.

    Args:
        data: folder or URI that ingest wrote.
        deep: also check every row: checksums, images, run lengths, label maps and fields.

    Returns:
        images, annotations, shards, problems and seconds, for the RESULT line.

    Raises:
        DatasetError: the list of all problems.
    """
    started = time.perf_counter()
    manifest = read_manifest(data)
    problems = audit_shards(data)
    if deep and not problems:
        problems = _audit_rows(data, manifest)
    if problems:
        raise DatasetError(format_audit(data, problems))
    _log.info("audit: %s ok, fingerprint %s", data, manifest.fingerprint)
    for gap in describe_gaps(manifest):
        _log.warning("audit: %s", gap)
    for name in ("rejects", "fixed", "notices"):
        counts = ", ".join(f"{kind} {count}" for kind, count in getattr(manifest, name).items())
        _log.info("audit: %s at ingest: %s", name, counts or "none")
    return {
        "images": manifest.images,
        "annotations": manifest.annotations,
        "shards": len(manifest.shards),
        "problems": 0,
        "deep": deep,
        "fingerprint": manifest.fingerprint,
        "seconds": round(time.perf_counter() - started, 2),
    }


def audit_shards(uri: str) -> list[str]:
    """Compare a folder's shards with its dataset.json: their footers and categories.

    Fast enough to run before every training: a few small reads per shard.

    Returns:
        One sentence per problem.

    Raises:
        DatasetError: dataset.json is missing or damaged.
    """
    manifest = read_manifest(uri)
    problems = []
    if manifest.task == "instance" and manifest.field_side != FIELD_SIDE:
        problems.append(
            f"{manifest_uri(uri)}: fields have {manifest.field_side} cells per side, "
            f"this version reads {FIELD_SIDE}"
        )
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for more in pool.map(lambda shard: _audit_footer(uri, shard, manifest), manifest.shards):
            problems += more
    return problems


def format_audit(uri: str, problems: list[str]) -> str:
    """Format the problems of shards as one error text."""
    lines = [f"  {each}" for each in problems[:_EXAMPLES]]
    if len(problems) > _EXAMPLES:
        lines.append(f"  and {len(problems) - _EXAMPLES} more")
    return (
        f"{uri} does not match what ingest wrote, {format_count(len(problems), 'problem')}:\n"
        + "\n".join(lines)
        + "\nCopy it again, or run the same ingest command again: it keeps intact shards and makes "
        "the others."
    )


def _audit_footer(uri: str, shard: ShardInfo, manifest: Manifest) -> list[str]:
    shard_uri = storage.join(uri, shard.file)
    size = storage.file_size(shard_uri)
    if size is None:
        return [f"{shard.file} is missing"]
    if shard.size_bytes and size != shard.size_bytes:
        return [f"{shard.file} has {size} bytes, dataset.json says {shard.size_bytes}"]
    footer = read_footer(shard_uri)
    if footer is None:
        return [f"{shard.file} is not a shard: its footer cannot be read"]
    metadata, stored = footer
    if not metadata.schema.to_arrow_schema().equals(
        get_schema(manifest.task, federated=manifest.federated)
    ):
        return [f"{shard.file} does not have the columns of a shard of this version"]
    row_groups = tuple(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
    max_index = _find_max_category(shard_uri)
    if max_index is None:
        return [f"{shard.file} is damaged: its category_index cannot be read"]
    rules = [
        (
            row_groups == shard.row_groups,
            f"row groups {_shorten_list(row_groups)}, "
            f"dataset.json says {_shorten_list(shard.row_groups)}",
        ),
        (
            not shard.digest or stored["info"].get("digest") == shard.digest,
            "its rows are not those of dataset.json",
        ),
        (
            max_index < len(manifest.categories),
            f"category_index {max_index}, dataset.json has {len(manifest.categories)} categories",
        ),
    ]
    return [f"{shard.file}: {text}" for holds, text in rules if not holds]


def _find_max_category(uri: str) -> int | None:
    """Return the maximum category_index of a shard, -1 without any; None if it cannot be read.

    It is also in the footer's statistics, but pyarrow ends the process over those of a damaged one.
    """
    fs, path = storage.resolve(uri)
    try:
        with fs.open_input_file(path) as source, pq.ParquetFile(source) as shard:
            column = shard.read(columns=["category_index"])["category_index"]
    except (OSError, pa.ArrowException):
        return None
    found: int | None = pc.max(pc.list_flatten(column)).as_py()
    return -1 if found is None else found


def _audit_rows(uri: str, manifest: Manifest) -> list[str]:
    """Check every row: its hash, image, run lengths and fields."""
    problems: list[str] = []
    seen: set[int] = set()
    images = 0
    logged_at = time.perf_counter()
    for shard in manifest.shards:
        digest = hashlib.sha256()
        for row in _read_rows(uri, shard, problems):
            digest.update(hash_row(row))
            where = f"{shard.file}, image {row['image_id']}, {row['file_name']}"
            problems += [f"{where}: {text}" for text in _audit_row(row, manifest)]
            if row["image_id"] in seen:
                problems.append(f"{where}: the image id is used twice")
            seen.add(row["image_id"])
            images += 1
            if time.perf_counter() - logged_at >= _PROGRESS_EVERY_S:
                logged_at = time.perf_counter()
                _log.info(
                    "audit: images %d/%d  problems %d", images, manifest.images, len(problems)
                )
        if shard.digest and not problems and digest.hexdigest() != shard.digest:
            problems.append(f"{shard.file}: its rows are not those of dataset.json")
    return problems


def _read_rows(uri: str, shard: ShardInfo, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard, one row group at a time; a read error becomes a problem."""
    fs, path = storage.resolve(storage.join(uri, shard.file))
    try:
        with fs.open_input_file(path) as stream:
            reader = pq.ParquetFile(stream, page_checksum_verification=True)
            for number in range(reader.num_row_groups):
                yield from reader.read_row_group(number).to_pylist()
    except (OSError, UnicodeDecodeError, pa.ArrowException, StorageError) as error:
        problems.append(f"{shard.file} cannot be read: {str(error).splitlines()[0][:200]}")


def _audit_row(row: dict[str, Any], manifest: Manifest) -> list[str]:
    size_hw = (row["height"], row["width"])
    # Ingest accepted this image, possibly with a higher limit than the default.
    reasons = check_image(row["image"], size_hw, max_pixels=2 * MAX_PIXELS)
    problems = [f"{kind}: {reason}" for kind, reason in reasons if KINDS[kind][0] != "notice"]
    if manifest.task == "semantic":
        return problems or audit_planes(row, num_classes=len(manifest.categories))
    problems += _audit_lists(row, manifest)
    if not problems:
        problems += _audit_masks(row, size_hw)
    return problems


def _audit_lists(row: dict[str, Any], manifest: Manifest) -> list[str]:
    lists = ("annotation_id", "boxes_xyxy", "category_index", "is_crowd", "area_px", "rle")
    count = len(row["squeeze_field"])
    problems = [
        f"{len(row[name])} values of {name}, {count} fields"
        for name in lists
        if len(row[name]) != count
    ]
    known = range(len(manifest.categories))
    return problems + [
        f"{name} has a category_index that is not in dataset.json"
        for name in FEDERATED.values()
        if manifest.federated and not set(row[name]) <= set(known)
    ]


def _audit_masks(row: dict[str, Any], size_hw: tuple[int, int]) -> list[str]:
    problems = []
    for number, encoded in enumerate(row["rle"]):
        name = f"annotation {row['annotation_id'][number]}"
        try:
            runs = decode_counts(encoded, size_hw)
        except MaskError as error:
            problems.append(f"{name}: {error}")
            continue
        mask = RunLengths(size_hw=size_hw, encoded=encoded, runs=runs)
        box = np.asarray(row["boxes_xyxy"][number], dtype=np.float32)
        field = compute_squeeze_field(mask, box, side=FIELD_SIDE)
        if field.tobytes() != row["squeeze_field"][number]:
            problems.append(f"{name}: its field does not match its mask")
    return problems


def _shorten_list(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return f"{shown}, ... ({len(numbers)})" if len(numbers) > 4 else shown
