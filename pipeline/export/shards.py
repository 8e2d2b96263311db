"""Write shards of instances back as a COCO data set: one JSON file and the photos, byte for byte.

Ids, boxes, areas and crowd flags are those of the shards. Masks are COCO's compressed run lengths,
which is how shards hold them: polygons are filled at ingest. To ingest the result again gives equal
rows.
"""

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.data.dataset_files import describe_unsafe_name
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.data.read_rows import read_rows
from pipeline.data.schema import FEDERATED
from pipeline.errors import DatasetError
from pipeline.progress import log_progress
from pipeline.text import format_count

_log = logging.getLogger(__name__)

_COLUMNS = (
    *("image_id", "file_name", "height", "width", "image", "annotation_id", "boxes_xyxy"),
    *("category_index", "is_crowd", "area_px", "rle"),
)


def export_shards(root: str, out: str, *, split: str, license: str = "") -> dict[str, Any]:
    """Write a split as out/annotations/instances_SPLIT.json and out/SPLIT/.

    Args:
        root: folder or URI with a folder of shards for each split; or the split's own folder.
        out: folder or URI to write.
        split: name of the split.
        license: license of the photos, for the JSON file's info; "" states none.

    Returns:
        images, annotations, crowds and the files, for the RESULT line.

    Raises:
        DatasetError: these are no shards of instances, or a file name leaves the folder.
        StorageError: a file cannot be read or written.
    """
    uri = storage.join(root, split)
    if not storage.exists(storage.join(uri, "dataset.json")):
        uri = root
    manifest = read_manifest(uri)
    if manifest.task != "instance":
        raise DatasetError(
            f"{uri} has label maps, which are no COCO annotations; the PNGs are in its column label"
        )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids = [each.category_id for each in manifest.categories]
    for row in log_progress(_read(uri, manifest), "export", total=manifest.images):
        if reason := describe_unsafe_name(row["file_name"]):
            raise DatasetError(f"image {row['image_id']}: file_name {row['file_name']!r} {reason}")
        photo = storage.join(out, split, *row["file_name"].split("/"))
        storage.write_bytes_atomic(photo, row["image"])
        images.append(_make_image(row, manifest, ids))
        annotations += _make_annotations(row, ids)
    file = storage.join(out, "annotations", f"instances_{split}.json")
    info = {"description": f"exported from shards {manifest.fingerprint}", "license": license}
    content = {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": _make_categories(manifest),
    }
    storage.write_bytes_atomic(file, json.dumps(content).encode())
    _log.info(
        "export: %s, %s in %s",
        *(format_count(len(images), "image"), format_count(len(annotations), "annotation"), file),
    )
    return {
        "images": len(images),
        "annotations": len(annotations),
        "crowds": sum(each["iscrowd"] for each in annotations),
        "annotations_file": file,
        "photos": storage.join(out, split),
    }


def _read(uri: str, manifest: Manifest) -> Iterator[dict[str, Any]]:
    columns = [*_COLUMNS, *(FEDERATED.values() if manifest.federated else ())]
    for shard in manifest.shards:
        for group, rows in enumerate(shard.row_groups):
            file = storage.join(uri, shard.file)
            table: pa.Table = read_rows(file, group, np.arange(rows), columns=columns)
            yield from table.to_pylist()


def _make_image(row: dict[str, Any], manifest: Manifest, ids: list[int]) -> dict[str, Any]:
    image = {
        "id": row["image_id"],
        "file_name": row["file_name"],
        "height": row["height"],
        "width": row["width"],
    }
    if manifest.federated:
        image |= {key: [ids[each] for each in row[column]] for key, column in FEDERATED.items()}
    return image


def _make_annotations(row: dict[str, Any], ids: list[int]) -> Iterator[dict[str, Any]]:
    size = [row["height"], row["width"]]
    for index, annotation_id in enumerate(row["annotation_id"]):
        # Differences of two float32 are exact in JSON's numbers.
        x0, y0, x1, y1 = row["boxes_xyxy"][index]
        yield {
            "id": annotation_id,
            "image_id": row["image_id"],
            "category_id": ids[row["category_index"][index]],
            "iscrowd": int(row["is_crowd"][index]),
            "area": row["area_px"][index],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": {"size": size, "counts": row["rle"][index].decode()},
        }


def _make_categories(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {
            "id": each.category_id,
            "name": each.name,
            **({"frequency": each.frequency} if each.frequency else {}),
        }
        for each in manifest.categories
    ]
