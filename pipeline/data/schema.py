"""What a shard holds: the columns of a row, and a hash of what is in them."""

import hashlib
import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa

Task = Literal["instance", "semantic"]

SCHEMA_VERSION = 1

FIELD_SIDE = 112
"""Side of an instance's squeeze field, in cells."""

INSTANCE_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        # The encoded file exactly as it came.
        pa.field("image", pa.binary(), nullable=False),
        # One entry for each annotation, in the order of annotation ids.
        pa.field("annotation_id", pa.list_(pa.int64()), nullable=False),
        pa.field("boxes_xyxy", pa.list_(pa.list_(pa.float32(), 4)), nullable=False),
        pa.field("category_index", pa.list_(pa.int32()), nullable=False),
        pa.field("is_crowd", pa.list_(pa.bool_()), nullable=False),
        pa.field("area_px", pa.list_(pa.float32()), nullable=False),
        # COCO's compressed run-length counts, at image size.
        pa.field("rle", pa.list_(pa.binary()), nullable=False),
        # FIELD_SIDE * FIELD_SIDE int8, row by row; crowds have one too, so lists stay aligned.
        pa.field("squeeze_field", pa.list_(pa.binary(FIELD_SIDE * FIELD_SIDE)), nullable=False),
    ]
)
"""A row of an instance shard."""


FEDERATED = {
    "neg_category_ids": "neg_category_index",
    "not_exhaustive_category_ids": "not_exhaustive_category_index",
}
"""LVIS looked for a few categories in each image. Key of its file: column of a row.

Negative categories were looked for and are not there; of not exhaustive ones, instances may be
missing; positive ones are those that have annotations; nothing is known of the others.
"""

FEDERATED_SCHEMA = pa.schema(
    [
        *INSTANCE_SCHEMA,
        *(pa.field(name, pa.list_(pa.int32()), nullable=False) for name in FEDERATED.values()),
    ]
)
"""A row of an instance shard of a federated data set."""


def schema_of(task: Task, *, federated: bool) -> pa.Schema:
    """Give the columns of a row."""
    return FEDERATED_SCHEMA if federated else INSTANCE_SCHEMA


_PLAIN = (
    "image_id",
    "file_name",
    "height",
    "width",
    "annotation_id",
    "category_index",
    "is_crowd",
)


def row_digest(row: dict[str, Any]) -> bytes:
    """Hash what a row holds, as it is written and as it is read back."""
    digest = hashlib.sha256(row["image"])
    digest.update(json.dumps([row[name] for name in _PLAIN]).encode())
    for name in ("boxes_xyxy", "area_px"):
        digest.update(np.asarray(row[name], dtype=np.float32).tobytes())
    for name in ("rle", "squeeze_field"):
        for encoded in row[name]:
            digest.update(encoded)
    lists = [row[name] for name in FEDERATED.values() if name in row]
    digest.update(json.dumps(lists).encode() if lists else b"")
    return digest.digest()
