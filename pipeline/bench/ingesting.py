"""Ingest photos and annotations of COCO: ours beside a loop with pycocotools and Pillow.

Both decode every photo to check it, turn each segmentation into RLE, box and area, make its squeeze
field, and write one Parquet file with the same columns. The loop checks nothing else.
"""

import cProfile
import io
import pstats
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import time_in_turn, timed
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CocoIngest
from pipeline.data.instance_fields import FRAME_SCALE, field_from_grid
from pipeline.data.schema import FIELD_SIDE

_STAGES = {
    "decode check": ("photo.py", "check_image"),
    "masks": ("run_lengths.py", "read_segmentation"),
    "squeeze fields": ("instance_fields.py", "compute_squeeze_field"),
    "Parquet": ("core.py", "write_table"),
}
"""File and function of each stage of ours."""


def bench_ingest(
    *, photos: str, split: str, rounds: int, print_line: Callable[[str], None]
) -> Result:
    """Time both on one split, in one process without Ray, and print the shares of our stages."""
    cv2.setNumThreads(1)
    folder = Path(tempfile.mkdtemp())
    counts: dict[str, int] = {}

    def run_ours() -> None:
        out = folder / "ours"
        shutil.rmtree(out, ignore_errors=True)
        config = CocoIngest(root=photos, split=split, out=str(out), on_bad="drop", workers=0)
        counts.update(ingest_dataset(config))

    cases = {
        # First, because its errors say what is wrong with the folder.
        "ours": timed(run_ours),
        "pycocotools and Pillow": timed(lambda: _loop(Path(photos), split, folder)),
    }
    try:
        runs = time_in_turn(cases, rounds=rounds, print_line=print_line)
        shares = _measure_shares(run_ours)
    finally:
        shutil.rmtree(folder)
    for stage, share in shares.items():
        print_line(f"{stage:16}{100 * share:5.1f} % of ours")
    images = counts["images"]
    bars = [Bar(over="pycocotools and Pillow", under="ours", at_least=2)]
    rates = dict.fromkeys(cases, (images, "images"))
    facts = {f"share, {stage}": round(share, 3) for stage, share in shares.items()}
    return report(
        runs, bars, rates=rates, images=images, annotations=counts["annotations"], **facts
    )


def _measure_shares(run: Callable[[], object]) -> dict[str, float]:
    """Measure which share of the CPU time each stage takes."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(run)
    stats: Any = pstats.Stats(profile, stream=io.StringIO())
    shares = {
        stage: sum(
            entry[3]
            for (path, _, name), entry in stats.stats.items()
            if name == function and Path(path).name == file
        )
        / stats.total_tt
        for stage, (file, function) in _STAGES.items()
    }
    return shares | {"everything else": 1 - sum(shares.values())}


def _loop(root: Path, split: str, folder: Path) -> None:
    coco = COCO(str(root / "annotations" / f"instances_{split}.json"))
    index = {key: number for number, key in enumerate(sorted(coco.cats))}
    rows = []
    for image in coco.loadImgs(coco.getImgIds()):
        data = (root / split / image["file_name"]).read_bytes()
        with Image.open(io.BytesIO(data)) as photo:
            photo.convert("RGB").load()
        row: dict[str, Any] = {
            "image_id": image["id"],
            "file_name": image["file_name"],
            "height": image["height"],
            "width": image["width"],
            "image": data,
            **{name: [] for name in ("annotation_id", "category_index", "is_crowd", "area")},
            **{name: [] for name in ("boxes_xyxy", "rle", "squeeze_field")},
        }
        for entry in coco.loadAnns(coco.getAnnIds(image["id"])):
            _add_annotation(row, entry, coco, index)
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), folder / "loop.parquet", compression="zstd")


def _add_annotation(
    row: dict[str, Any], entry: dict[str, Any], coco: COCO, index: dict[int, int]
) -> None:
    packed = coco.annToRLE(entry)
    x, y, width, height = entry["bbox"]
    row["annotation_id"].append(entry["id"])
    row["category_index"].append(index[entry["category_id"]])
    row["is_crowd"].append(bool(entry["iscrowd"]))
    row["area"].append(float(mask_api.area(packed)))
    row["boxes_xyxy"].append([x, y, x + width, y + height])
    row["rle"].append(packed["counts"])
    field = _make_field(mask_api.decode(packed), x, y, width, height)
    row["squeeze_field"].append(field.tobytes())


def _make_field(
    mask: NDArray[np.uint8], x: float, y: float, width: float, height: float
) -> NDArray[np.int8]:
    """Sample the mask in its box, enlarged, and measure the distances to its outline."""
    scale_x, scale_y = (FRAME_SCALE * max(side, 1e-3) / FIELD_SIDE for side in (width, height))
    left = x + width / 2 - FRAME_SCALE * width / 2
    top = y + height / 2 - FRAME_SCALE * height / 2
    to_mask = np.array(
        [
            [scale_x, 0, left + scale_x / 2 - 0.5],
            [0, scale_y, top + scale_y / 2 - 0.5],
        ]
    )
    sampled = cv2.warpAffine(
        mask.astype(np.float32),
        to_mask,
        (FIELD_SIDE, FIELD_SIDE),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    )
    return field_from_grid((np.asarray(sampled) >= 0.5).astype(np.uint8))
