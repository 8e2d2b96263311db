"""Non-maximum suppression that says which boxes stay, in a fixed shape.

G groups (images, or images times levels) that do not see each other, n boxes in each, best first
"""

import torch
from torch import Tensor
from torchvision.ops import nms

from bsm.instance.box_ops import pairwise_iou

_ROUNDS = 32
"""Rounds of the fixed-point iteration. A round settles every box whose chain of better, overlapping
boxes is at most one longer than in the round before; random crowds of 2000 boxes were settled after
at most 10. Of a longer chain the end would keep boxes that greedy NMS drops."""


def keep_after_nms(
    boxes_xyxy: Tensor, valid: Tensor, *, iou_threshold: float, category_index: Tensor | None = None
) -> Tensor:
    """Which boxes (G, n) stay: no better one of their group and category overlaps them more.

    Args:
        boxes_xyxy: (G, n, 4), best first.
        valid: (G, n) bool; the others neither stay nor suppress.
        iou_threshold: Overlap from which on the worse of two boxes goes.
        category_index: (G, n); boxes of different categories do not see each other.
    """
    if boxes_xyxy.device.type == "cpu":
        return _keep_on_host(boxes_xyxy, valid, iou_threshold, category_index)
    return keep_without_host(
        boxes_xyxy, valid, iou_threshold=iou_threshold, category_index=category_index
    )


@torch.no_grad()
def _keep_on_host(
    boxes_xyxy: Tensor, valid: Tensor, iou_threshold: float, category_index: Tensor | None
) -> Tensor:
    keep = torch.zeros_like(valid)
    if category_index is not None:
        # Far apart is another category; float64 because float32 would round the boxes' own pixels.
        boxes_xyxy = boxes_xyxy.double()
        extent = boxes_xyxy.amax() - boxes_xyxy.amin() + 1 if boxes_xyxy.numel() else 1.0
        boxes_xyxy = boxes_xyxy + (category_index * extent).unsqueeze(-1)
    for group in range(len(boxes_xyxy)):
        index = valid[group].nonzero().squeeze(1)
        rank = -torch.arange(len(index), dtype=boxes_xyxy.dtype)
        stay = nms(boxes_xyxy[group, index], rank, iou_threshold)
        keep[group, index[stay]] = True
    return keep


@torch.no_grad()
def keep_without_host(
    boxes_xyxy: Tensor, valid: Tensor, *, iou_threshold: float, category_index: Tensor | None = None
) -> Tensor:
    """The same as `keep_after_nms`, as a fixed-point iteration that never asks the host anything.

    A box stays if no better box that stays overlaps it. Starting from all boxes, each round applies
    that sentence to the last round's answer; from some round on nothing changes, and the answer is
    greedy NMS.
    """
    n = boxes_xyxy.shape[1]
    overlaps = pairwise_iou(boxes_xyxy, boxes_xyxy) > iou_threshold
    if category_index is not None:
        overlaps &= category_index[:, :, None] == category_index[:, None, :]
    better = torch.ones(n, n, dtype=torch.bool, device=boxes_xyxy.device).triu_(diagonal=1)
    overlaps &= better & valid[:, :, None]
    # 0/1 sums: half precision counts far enough to tell 0 from more, at half the memory traffic.
    dtype = torch.float32 if boxes_xyxy.device.type == "cpu" else torch.float16
    suppresses = overlaps.to(dtype)
    keep = valid
    for _ in range(min(_ROUNDS, n)):
        suppressed = torch.bmm(keep.to(dtype).unsqueeze(1), suppresses).squeeze(1) > 0
        keep = valid & ~suppressed
    return keep
