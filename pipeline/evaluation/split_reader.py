"""Read a split for evaluation: cut it into chunks of images, and rebuild its truth.

The truth is rebuilt from the shards without reading images, so no annotation file is needed. A
chunk is a few rows of one row group. Chunks do not depend on the workers, and batches do not cross
chunks, so neither the number of workers nor their order changes a metric.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.manifest import Manifest, ShardInfo, read_manifest
from pipeline.data.read_rows import read_rows
from pipeline.data.schema import FEDERATED, check_columns
from pipeline.errors import DatasetError

_TRUTH_COLUMNS = [
    "image_id",
    "file_name",
    "height",
    "width",
    "boxes_xyxy",
    "category_index",
    "is_crowd",
    "area_px",
    "rle",
]

_IMAGE_COLUMNS = ["image_id", "file_name", "height", "width", "image"]


@dataclass(frozen=True, slots=True)
class EvalChunk:
    """Some rows of one row group of a shard."""

    file: str
    row_group: int
    rows: tuple[int, ...]
    image_ids: tuple[int, ...]


def plan_chunks(
    split_uri: str, *, max_images: int | None, images_per_chunk: int
) -> list[EvalChunk]:
    """Cut a split, or its first images by id, into chunks.

    Args:
        split_uri: folder of shards.
        max_images: number of images to use, by lowest id; None uses all.
        images_per_chunk: largest number of images in a chunk.
    """
    manifest = read_manifest(split_uri)
    groups = [
        (shard.file, number, table["image_id"].to_pylist())
        for shard in manifest.shards
        for number, table in enumerate(_read_row_groups(split_uri, shard, columns=["image_id"]))
    ]
    wanted = set(sorted(image_id for *_, ids in groups for image_id in ids)[:max_images])
    chunks: list[EvalChunk] = []
    for file, number, ids in groups:
        rows = [row for row, image_id in enumerate(ids) if image_id in wanted]
        for start in range(0, len(rows), images_per_chunk):
            chosen = tuple(rows[start : start + images_per_chunk])
            chunks.append(EvalChunk(file, number, chosen, tuple(ids[row] for row in chosen)))
    return chunks


def read_chunk(split_uri: str, chunk: EvalChunk, *, truth: Sequence[str] = ()) -> pa.Table:
    """Read the rows of a chunk: encoded images with their ids and names, and columns of the truth.

    Only these rows are read, since a row group of large images may not fit in memory.
    """
    return read_rows(
        storage.join(split_uri, chunk.file),
        chunk.row_group,
        np.array(chunk.rows),
        columns=[*_IMAGE_COLUMNS, *truth],
    )


def truth_from_shards(
    split_uri: str, *, image_ids: Collection[int] | None = None
) -> dict[str, Any]:
    """Rebuild a COCO annotation file from a split's shards, without reading its images.

    A federated split gives an LVIS truth: images list the categories that were checked, categories
    have their frequency, and categories that are not in LVIS are left out.

    Args:
        split_uri: folder of shards.
        image_ids: images to use; None uses all.

    Raises:
        DatasetError: the folder is not a complete split.
        StorageError: it cannot be read.
    """
    manifest = read_manifest(split_uri)
    category_ids = [each.category_id for each in manifest.categories]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row in _read_truth_rows(split_uri, manifest):
        if image_ids is not None and row["image_id"] not in image_ids:
            continue
        image = {"id": row["image_id"]} | {k: row[k] for k in ("file_name", "height", "width")}
        if manifest.federated:
            image |= {k: [category_ids[i] for i in row[name]] for k, name in FEDERATED.items()}
        images.append(image)
        try:
            for annotation in _list_annotations(row, category_ids):
                annotations.append(annotation | {"id": len(annotations) + 1})
        except (ValueError, IndexError, TypeError) as error:
            raise DatasetError(
                f"{split_uri}, image {row['image_id']}: its lists of annotations do not fit "
                f"together ({error}). To list all, type: python jobs/audit.py --data {split_uri} "
                "--deep. Then ingest the split again"
            ) from error
    return {
        "images": images,
        "annotations": annotations,
        "categories": _list_categories(manifest),
    }


def _list_categories(manifest: Manifest) -> list[dict[str, Any]]:
    if not manifest.federated:
        return [{"id": e.category_id, "name": e.name} for e in manifest.categories]
    return [
        {"id": e.category_id, "name": e.name, "frequency": e.frequency}
        for e in manifest.categories
        if e.frequency
    ]


def _list_annotations(row: dict[str, Any], category_ids: list[int]) -> Iterator[dict[str, Any]]:
    columns = ("boxes_xyxy", "category_index", "is_crowd", "area_px", "rle")
    for box, index, is_crowd, area_px, counts in zip(*(row[c] for c in columns), strict=True):
        yield {
            "image_id": row["image_id"],
            "category_id": category_ids[index],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": area_px,
            "iscrowd": int(is_crowd),
            "segmentation": {"size": [row["height"], row["width"]], "counts": counts},
        }


def _read_truth_rows(split_uri: str, manifest: Manifest) -> Iterator[dict[str, Any]]:
    columns = [*_TRUTH_COLUMNS, *(FEDERATED.values() if manifest.federated else ())]
    for each in manifest.shards:
        for table in _read_row_groups(split_uri, each, columns=columns):
            try:
                rows = table.to_pylist()
            except UnicodeDecodeError as error:
                raise DatasetError(
                    f"{storage.join(split_uri, each.file)}: a file name is not text ({error}); "
                    "ingest the split again"
                ) from error
            yield from rows


def _read_row_groups(split_uri: str, shard: ShardInfo, *, columns: list[str]) -> Iterator[pa.Table]:
    for number in range(len(shard.row_groups)):
        yield _read_row_group(split_uri, shard.file, number, columns=columns)


def _read_row_group(split_uri: str, file: str, number: int, *, columns: list[str]) -> pa.Table:
    uri = storage.join(split_uri, file)
    fs, path = storage.resolve(uri)
    try:
        with fs.open_input_file(path) as source, pq.ParquetFile(source, pre_buffer=True) as shard:
            check_columns(shard.schema_arrow, columns)
            return shard.read_row_group(number, columns=columns)
    except (OSError, IndexError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DatasetError(
            f"{uri}, row group {number}: {type(error).__name__}: {error}. The shard is missing, "
            "damaged, or not the one in dataset.json; ingest the split again"
        ) from error
