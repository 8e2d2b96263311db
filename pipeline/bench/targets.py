"""Make the targets of a training step's RoIs: ours beside the released way and kornia.

All make mask, boundary, contraction and expansion of each RoI at 28 x 28 cells with a kernel of 5.
The released code crops the whole masks by RoIAlign, then erodes and dilates one after another with
cv2. kornia does the second part at once. Ours reads the stored squeeze fields.
"""

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from bsm.configs.shared import TargetConfig
from bsm.field import MaskTargets
from bsm.instance.roi_targets import MaskRois, make_grid_targets
from bsm.morphology import crop_masks, targets_from_masks
from pipeline.bench.detectors import SIZE_HW
from pipeline.bench.disks import draw_targets
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import time_in_turn, timed

_OBJECTS, _SIDE, _KERNEL = 16, 28, 5


def bench_targets(*, rois: int, rounds: int, print_line: Callable[[str], None]) -> Result:
    """Time the targets of RoIs around the objects of an image."""
    cv2.setNumThreads(1)
    targets = draw_targets(1, _OBJECTS, SIZE_HW)
    generator = torch.Generator().manual_seed(1)
    slot = torch.arange(rois) % _OBJECTS
    boxes = targets.boxes_xyxy[0, slot]
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = boxes + 0.1 * sides * torch.randn(rois, 4, generator=generator).clamp(-2, 2)
    zeros = torch.zeros(rois, dtype=torch.int64)
    mask_rois = MaskRois(
        torch.cat([torch.zeros(rois, 1), boxes], dim=1), zeros, slot, torch.ones(rois), zeros
    )
    assert targets.masks is not None  # noqa: S101  draw_targets makes them
    whole_masks = targets.masks

    def crop() -> Tensor:
        return crop_masks(whole_masks, boxes, zeros, slot, side=_SIDE)

    def from_source(source: Literal["field", "roi"]) -> MaskTargets:
        config = TargetConfig(source=source, kernel_size=_KERNEL)
        return make_grid_targets(mask_rois, targets, config=config, side=_SIDE)

    def run_kornia() -> MaskTargets:
        return targets_from_masks(crop(), kernel_size=_KERNEL, unite_boundary=True)

    for a, b in zip(_loop(crop()), from_source("roi"), strict=True):
        if not torch.equal(a, b):
            raise AssertionError("the loop makes other targets than ours")
    cases = {
        "cropping alone": timed(crop),
        "loop over RoIs, cv2": timed(lambda: _loop(crop())),
        "kornia": timed(run_kornia),
        "ours, field": timed(lambda: from_source("field")),
    }
    runs = time_in_turn(cases, rounds=rounds, warm_ups=3, print_line=print_line)
    bars = [
        Bar(over="loop over RoIs, cv2", under="ours, field", at_least=10),
        Bar(over="kornia", under="ours, field"),
    ]
    return report(runs, bars, rois=rois)


def _loop(masks: Tensor) -> MaskTargets:
    """Make the targets of one mask after another, as in the released code."""
    kernel = np.ones((_KERNEL, _KERNEL), np.uint8)
    laplacian = torch.full((1, 1, 3, 3), -1.0)
    laplacian[0, 0, 1, 1] = 8.0
    edges = torch.nn.functional.conv2d(masks[:, None], laplacian, padding=1).clamp(min=0)
    boundary = (edges[:, 0] > 0.1).float()
    bands = []
    for mask in masks:
        pixels = mask.numpy().astype(np.uint8)
        dilated, eroded = cv2.dilate(pixels, kernel), cv2.erode(pixels, kernel)
        bands.append(torch.from_numpy(np.stack([dilated - pixels, pixels - eroded])))
    contraction, expansion = torch.stack(bands).float().unbind(1)
    return MaskTargets(
        masks, boundary, torch.maximum(contraction, boundary), torch.maximum(expansion, boundary)
    )
