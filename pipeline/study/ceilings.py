"""The quality that masks of a size can reach: the truth itself, sampled on each grid and pasted.

A head that predicts M x M cells per box cannot do better than the truth on that grid. Two ways to
put the truth there limit a mask differently:

    hard      each cell is 0 or 1, from the mask's pixels: what a saturated head predicts
    distance  each cell has its distance to the outline, as the shards' squeeze field knows it: what
              a head predicts whose logits cross zero at the outline
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bsm.field import sample_field
from bsm.instance.tensors import Detections
from bsm.morphology import crop_masks
from pipeline import storage
from pipeline.data.batch import Batch
from pipeline.data.collate import collate_for_test
from pipeline.data.manifest import read_manifest
from pipeline.evaluation.infer import to_image_size
from pipeline.evaluation.instances import TRUE_BOX_COLUMNS, to_rows
from pipeline.evaluation.split_reader import plan_chunks, read_chunk
from pipeline.recipe import DataConfig
from pipeline.study.heads import measure_masks
from pipeline.study.summary import HeadRun

SIDES = (28, 56, 112)

_REACH = 4.0
"""Cells from the outline at which a probability made of a distance becomes 0 or 1."""

_PASTE_BYTES = 64 * 2**20


def load_ceilings(path: Path, *, split_uri: str, data: DataConfig) -> list[HeadRun]:
    """Read the ceilings of a split from a file, or measure them and write it."""
    if not path.exists():
        runs = [asdict(run) for run in measure_ceilings(split_uri, data)]
        storage.write_bytes_atomic(str(path), json.dumps(runs).encode())
    return [HeadRun(**run) for run in json.loads(path.read_text())]


def measure_ceilings(split_uri: str, data: DataConfig) -> list[HeadRun]:
    """Measure the truth of a split on every grid, as if a head had predicted it.

    Args:
        split_uri: folder of shards.
        data: how images are resized; it changes boxes only in their last bits.
    """
    manifest = read_manifest(split_uri)
    names = [(side, kind) for side in SIDES for kind in ("hard", "distance")]
    rows: dict[tuple[int, str], list[dict[str, object]]] = {name: [] for name in names}
    for chunk in plan_chunks(split_uri, max_images=None, images_per_chunk=1):
        table = read_chunk(split_uri, chunk, truth=(*TRUE_BOX_COLUMNS, "rle"))
        batch = collate_for_test(table, data, with_targets=True, with_masks=True)
        for side, kind in names:
            probs = _sample_truth(batch, side=side, kind=kind)
            targets: Any = batch.targets  # of instances
            found = Detections(
                targets.boxes_xyxy,
                targets.valid.float(),
                targets.category_index,
                targets.valid,
                probs,
            )
            for each in to_image_size(found, batch, paste_bytes=_PASTE_BYTES):
                rows[side, kind] += to_rows(each, manifest, split_uri)
    return [
        HeadRun(
            head=f"{side} x {side}, {kind}",
            seed=0,
            train_s=0.0,
            **measure_masks(rows[side, kind], split_uri=split_uri),
        )
        for side, kind in names
    ]


def _sample_truth(batch: Batch, *, side: int, kind: str) -> Tensor:
    """Sample the true masks of a batch of one image as probabilities (1, T, M, M)."""
    targets: Any = batch.targets  # of instances
    boxes = targets.boxes_xyxy[0]
    if kind == "hard":
        slots = torch.arange(len(boxes))
        scaled = boxes * targets.mask_scale_xy[0].repeat(1, 2)
        return crop_masks(targets.masks, scaled, torch.zeros_like(slots), slots, side=side)[None]
    distance = sample_field(targets.squeeze_field[0], targets.field_frame_xyxy[0], boxes, side=side)
    return (0.5 + distance / (2 * _REACH)).clamp(0, 1)[None]
