"""Paste and encode the masks of an image: ours beside torchvision's paste and pycocotools."""

from collections.abc import Callable
from functools import partial

import numpy as np
from pycocotools import mask as mask_api
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from pipeline.bench.drawing import draw_detections
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import Case, time_in_turn, timed
from pipeline.evaluation.encode_masks import paste_and_encode
from pipeline.recipe import EvaluationConfig

_SIZES_HW = ((800, 1333), (3000, 4000))


def bench_paste(*, detections: int, rounds: int, print_line: Callable[[str], None]) -> Result:
    """Time both at two sizes of an image; both keep an RLE of each mask."""
    cases: dict[str, Case] = {}
    bars = []
    for size_hw in _SIZES_HW:
        inputs = (*draw_detections(detections, size_hw), size_hw)
        size = f"{size_hw[1]} x {size_hw[0]}"
        ours, theirs = f"ours, {size}", f"torchvision + pycocotools, {size}"
        cases[theirs] = timed(partial(_run_torchvision, *inputs))
        cases[ours] = timed(partial(_run_ours, *inputs))
        bars.append(Bar(over=theirs, under=ours, at_least=3))
    runs = time_in_turn(cases, rounds=rounds, warm_ups=0, print_line=print_line)
    return report(runs, bars, detections=detections)


def _run_ours(probs: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> list[bytes]:
    budget = EvaluationConfig().paste_bytes
    return paste_and_encode(probs, boxes_xyxy, size_hw=size_hw, paste_bytes=budget)


def _run_torchvision(probs: Tensor, boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> list[bytes]:
    """Do what its references do: paste all masks as floats, and encode them one by one."""
    masks = paste_masks_in_image(probs[:, None], boxes_xyxy, size_hw) > 0.5
    return [
        mask_api.encode(np.asfortranarray(mask[0].numpy(), dtype=np.uint8))["counts"]
        for mask in masks
    ]
