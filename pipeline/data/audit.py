"""Check finished shards: quickly from their footers before training starts, or every byte.

What was wrong with the source was settled by ingest. Here is asked whether the folder still holds
what ingest declared: nothing lost on a copy, nothing of another run, nothing cut off.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.audit_label_maps import audit_planes
from pipeline.data.instance_fields import squeeze_field
from pipeline.data.manifest import Manifest, ShardInfo, manifest_uri, read_manifest
from pipeline.data.run_lengths import MaskError, RunLengths, decode_counts
from pipeline.data.schema import FEDERATED, FIELD_SIDE, row_digest, schema_of
from pipeline.data.shards import read_footer
from pipeline.data.validate_image import MAX_PIXELS, check_image
from pipeline.errors import DatasetError, StorageError

_log = logging.getLogger(__name__)

_READERS = 16
_PROGRESS_EVERY_S = 5.0
_EXAMPLES = 20


def audit(data: str, *, deep: bool = False) -> dict[str, Any]:
    """Check a folder of shards.

    Args:
        data: folder or URI that ingest wrote.
        deep: read every row too: checksums, images, run lengths, label maps and fields.

    Returns:
        images, annotations, shards, problems and seconds, for the RESULT line.

    Raises:
        DatasetError: something is wrong; all of it is listed.
    """
    started = time.perf_counter()
    manifest = read_manifest(data)
    problems = audit_shards(data)
    if deep and not problems:
        problems = _audit_rows(data, manifest)
    if problems:
        raise DatasetError(told(data, problems))
    _log.info("audit: %s is sound, fingerprint %s", data, manifest.fingerprint)
    for name in ("rejects", "fixed", "notices"):
        counts = getattr(manifest, name)
        _log.info("audit: %s at ingest: %s", name, _listed(counts) or "none")
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
    """Compare a folder's shards with its dataset.json, from their footers alone.

    Fast enough for every start of a training: one small read a shard.

    Returns:
        What is wrong, one sentence each; empty where nothing is.

    Raises:
        DatasetError: dataset.json is not there or damaged.
    """
    manifest = read_manifest(uri)
    problems = []
    if manifest.task == "instance" and manifest.field_side != FIELD_SIDE:
        problems.append(
            f"{manifest_uri(uri)}: fields have {manifest.field_side} cells a side, "
            f"this version reads {FIELD_SIDE}"
        )
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(lambda shard: _audit_footer(uri, shard, manifest), manifest.shards):
            problems += found
    return problems


def told(uri: str, problems: list[str]) -> str:
    """Put problems of shards into one text for the user."""
    lines = [f"  {each}" for each in problems[:_EXAMPLES]]
    if len(problems) > _EXAMPLES:
        lines.append(f"  and {len(problems) - _EXAMPLES} more")
    return (
        f"{uri} does not hold what ingest wrote, {len(problems)} problems:\n"
        + "\n".join(lines)
        + "\nCopy it again, or run the same ingest command again: it keeps sound shards and makes "
        "the others."
    )


def _audit_footer(uri: str, shard: ShardInfo, manifest: Manifest) -> list[str]:
    place = storage.join(uri, shard.file)
    size = storage.file_size(place)
    if size is None:
        return [f"{shard.file} is missing"]
    if shard.size_bytes and size != shard.size_bytes:
        return [f"{shard.file} has {size} bytes, dataset.json says {shard.size_bytes}"]
    footer = read_footer(place)
    if footer is None:
        return [f"{shard.file} is no shard: its footer cannot be read"]
    metadata, stored = footer
    if not metadata.schema.to_arrow_schema().equals(
        schema_of(manifest.task, federated=manifest.federated)
    ):
        return [f"{shard.file} has other columns than a shard of this version"]
    row_groups = tuple(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups))
    rules = [
        (
            row_groups == shard.row_groups,
            f"row groups {_few(row_groups)}, dataset.json says {_few(shard.row_groups)}",
        ),
        (
            not shard.digest or stored["info"]["digest"] == shard.digest,
            "it holds other rows than dataset.json says",
        ),
        (
            _greatest_category(metadata) < len(manifest.categories),
            f"category_index {_greatest_category(metadata)}, "
            f"there are {len(manifest.categories)} categories",
        ),
    ]
    return [f"{shard.file}: {text}" for holds, text in rules if not holds]


def _greatest_category(metadata: pq.FileMetaData) -> int:
    """Give the greatest category_index by the footer's statistics; -1 where there is none."""
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    column = next(n for n, path in enumerate(paths) if path.startswith("category_index."))
    greatest = -1
    for number in range(metadata.num_row_groups):
        values = metadata.row_group(number).column(column).statistics
        if values is not None and values.has_min_max:
            greatest = max(greatest, values.max)
    return greatest


def _audit_rows(uri: str, manifest: Manifest) -> list[str]:
    """Read every row: its checksum, image, run lengths and fields."""
    problems: list[str] = []
    seen: set[int] = set()
    images = 0
    told_at = time.perf_counter()
    for shard in manifest.shards:
        digest = hashlib.sha256()
        for row in _rows(uri, shard, problems):
            digest.update(row_digest(row))
            where = f"{shard.file}, image {row['image_id']}, {row['file_name']}"
            problems += [f"{where}: {text}" for text in _audit_row(row, manifest)]
            if row["image_id"] in seen:
                problems.append(f"{where}: the image id is used twice")
            seen.add(row["image_id"])
            images += 1
            if time.perf_counter() - told_at >= _PROGRESS_EVERY_S:
                told_at = time.perf_counter()
                _log.info(
                    "audit: images %d/%d  problems %d", images, manifest.images, len(problems)
                )
        if shard.digest and not problems and digest.hexdigest() != shard.digest:
            problems.append(f"{shard.file}: its rows are not those that dataset.json names")
    return problems


def _rows(uri: str, shard: ShardInfo, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Give the rows of a shard one row group at a time; note what cannot be read."""
    fs, path = storage.resolve(storage.join(uri, shard.file))
    try:
        with fs.open_input_file(path) as stream:
            reader = pq.ParquetFile(stream, page_checksum_verification=True)
            for number in range(reader.num_row_groups):
                yield from reader.read_row_group(number).to_pylist()
    except (OSError, pa.ArrowException, StorageError) as error:
        problems.append(f"{shard.file} cannot be read: {str(error).splitlines()[0][:200]}")


def _audit_row(row: dict[str, Any], manifest: Manifest) -> list[str]:
    size_hw = (row["height"], row["width"])
    # Ingest let this image in, so its own limit does not apply again.
    found = check_image(row["image"], size_hw, max_pixels=2 * MAX_PIXELS)
    problems = [f"{kind}: {reason}" for kind, reason in found if kind != "image_turned"]
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
        if squeeze_field(mask, box, side=FIELD_SIDE).tobytes() != row["squeeze_field"][number]:
            problems.append(f"{name}: its field is not that of its mask")
    return problems


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())


def _few(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:4]))
    return f"{shown}, ... ({len(numbers)})" if len(numbers) > 4 else shown
