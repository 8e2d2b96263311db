"""What a shard holds: the columns of a row, and the dataset.json beside the shards."""

import pyarrow as pa

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
