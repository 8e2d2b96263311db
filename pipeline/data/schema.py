"""The columns of a shard, and the hash of a row."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.recipe import ModelTask

Task = Literal["instance", "semantic"]

SCHEMA_VERSION = 2
"""Version that ingest writes. 2 added semantic rows and the columns of federated ones."""

READ_VERSIONS = (1, 2)
"""Instance rows of version 1 and 2 are equal."""

FIELD_SIDE = 112
"""Side of an instance's squeeze field, in cells."""

_IMAGE_COLUMNS = [
    pa.field("image_id", pa.int64(), nullable=False),
    pa.field("file_name", pa.string(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    # The encoded file, byte for byte.
    pa.field("image", pa.binary(), nullable=False),
]

INSTANCE_SCHEMA = pa.schema(
    [
        *_IMAGE_COLUMNS,
        # One entry for each annotation, in the order of annotation ids.
        pa.field("annotation_id", pa.list_(pa.int64()), nullable=False),
        pa.field("boxes_xyxy", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
        pa.field("category_index", pa.list_(pa.int32()), nullable=False),
        pa.field("is_crowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("area_px", pa.list_(pa.float32()), nullable=False),
        # COCO's compressed run-length counts, at image size.
        pa.field("rle", pa.list_(pa.binary()), nullable=False),
        # FIELD_SIDE * FIELD_SIDE int8, row-major; crowds have one too, so lists stay aligned.
        pa.field("squeeze_field", pa.list_(pa.binary(FIELD_SIDE * FIELD_SIDE)), nullable=False),
    ]
)
"""A row of an instance shard."""

FEDERATED = {
    "neg_category_ids": "neg_category_index",
    "not_exhaustive_category_ids": "not_exhaustive_category_index",
}
"""LVIS annotates only a few categories in each image. Key in its file: column of a row.

Negative categories are verified to be absent; not exhaustive ones may lack instances; positive ones
are those with annotations; nothing is known about the others.
"""

PLANES = ("label", "other_1", "distance_1", "other_2", "distance_2")
"""Columns of a semantic row that are PNGs of the image's size, 8 bits per pixel.

label is a category_index, or 255 for pixels without a class; pipeline/data/semantic_fields.py
defines the others.
"""

SEMANTIC_SCHEMA = pa.schema(
    [
        *_IMAGE_COLUMNS,
        # The classes in the label, ascending, and their numbers of pixels.
        pa.field("category_index", pa.list_(pa.int32()), nullable=False),
        pa.field("class_px", pa.list_(pa.int64()), nullable=False),
        *(pa.field(name, pa.binary(), nullable=False) for name in PLANES),
    ]
)
"""A row of a semantic shard."""

FEDERATED_SCHEMA = pa.schema(
    [
        *INSTANCE_SCHEMA,
        *(pa.field(name, pa.list_(pa.int32()), nullable=False) for name in FEDERATED.values()),
    ]
)
"""A row of an instance shard of a federated data set."""


def get_shard_task(task: ModelTask) -> Task:
    """Return the kind of shards that a model trains on: a refiner takes those of instances."""
    return "semantic" if task == "semantic" else "instance"


_FIELDS = {field.name: field for field in (*SEMANTIC_SCHEMA, *FEDERATED_SCHEMA)}


def get_schema(task: Task, *, federated: bool) -> pa.Schema:
    """Return the columns of a row."""
    if task == "semantic":
        return SEMANTIC_SCHEMA
    return FEDERATED_SCHEMA if federated else INSTANCE_SCHEMA


def check_columns(found: pa.Schema, columns: Iterable[str]) -> None:
    """Check that a file has columns of shards, before they are read.

    Raises:
        ArrowInvalid: one is missing or of another type.
    """
    wrong = [
        name
        for name in columns
        if found.get_field_index(name) < 0 or not found.field(name).equals(_FIELDS[name])
    ]
    if wrong:
        raise pa.ArrowInvalid(f"{', '.join(wrong)}: missing, or not as in a shard")


def hash_row(row: dict[str, Any]) -> bytes:
    """Hash a row, equally before it is written and after it is read back."""
    digest = hashlib.sha256(row["image"])
    digest.update(json.dumps([row[name] for name in _PLAIN if name in row]).encode())
    for name in ("boxes_xyxy", "area_px"):
        digest.update(np.asarray(row.get(name, ()), dtype=np.float32).tobytes())
    for name in ("rle", "squeeze_field"):
        for encoded in row.get(name, ()):
            digest.update(encoded)
    for name in PLANES:
        digest.update(row.get(name, b""))
    lists = [row[name] for name in (*FEDERATED.values(), "class_px") if name in row]
    digest.update(json.dumps(lists).encode() if lists else b"")
    return digest.digest()


_PLAIN = (
    "image_id",
    "file_name",
    "height",
    "width",
    "annotation_id",
    "category_index",
    "is_crowd",
)
