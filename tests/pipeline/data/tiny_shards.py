"""Write shards of a few drawn images: blocks on noise, with crowds and images without objects."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from pipeline.data.manifest import Category, Manifest, ShardInfo, write_manifest
from pipeline.data.schema import FIELD_SIDE, INSTANCE_SCHEMA


def write_tiny_split(
    folder: Path, *, shard_row_groups=((8, 8, 5), (8, 3)), size_hw=(48, 64), task="instance"
) -> str:
    """Write shards with row groups of the given lengths; image ids count from 100."""
    folder.mkdir(parents=True)
    image_id, shards = 100, []
    for index, row_groups in enumerate(shard_row_groups):
        file = f"part-{index:05d}.parquet"
        with pq.ParquetWriter(folder / file, INSTANCE_SCHEMA) as writer:
            for rows in row_groups:
                ids = range(image_id, image_id + rows)
                table = pa.Table.from_pylist(
                    [tiny_row(each, size_hw=size_hw) for each in ids], schema=INSTANCE_SCHEMA
                )
                writer.write_table(table, row_group_size=rows)
                image_id += rows
        shards.append(ShardInfo(file=file, rows=sum(row_groups), row_groups=tuple(row_groups)))
    manifest = Manifest(
        task=task,
        categories=(Category(category_id=1, category_index=0, name="block"),),
        shards=tuple(shards),
        images=image_id - 100,
        annotations=0,
        fingerprint="tiny",
    )
    write_manifest(str(folder), manifest)
    return str(folder)


def tiny_row(image_id: int, *, size_hw=(48, 64)) -> dict:
    """Draw image_id % 4 objects; the first of every third image is a crowd."""
    height, width = size_hw
    rng = np.random.default_rng(image_id)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes, rles, crowds, fields = [], [], [], []
    for index in range(image_id % 4):
        x0, y0 = int(rng.integers(0, width - 20)), int(rng.integers(0, height - 16))
        x1, y1 = x0 + 8 + 3 * index, y0 + 12
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[y0:y1, x0:x1] = 1
        pixels[y0:y1, x0:x1] = 40 * index
        boxes.append([x0, y0, x1, y1])
        rles.append(coco_mask.encode(mask)["counts"])
        crowds.append(index == 0 and image_id % 3 == 0)
        fields.append(np.full(FIELD_SIDE**2, image_id % 100 - index, np.int8).tobytes())
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.png",
        "height": height,
        "width": width,
        "image": cv2.imencode(".png", pixels)[1].tobytes(),
        "annotation_id": list(range(len(boxes))),
        "boxes_xyxy": boxes,
        "category_index": list(range(len(boxes))),
        "is_crowd": crowds,
        "area_px": [float((b[2] - b[0]) * (b[3] - b[1])) for b in boxes],
        "rle": rles,
        "squeeze_field": fields,
    }
