"""Non-maximum suppression with a fixed output shape: a mask of the boxes to keep.

G independent groups (images, or images times levels), n boxes in each, best first
"""

import torch
from torch import Tensor
from torchvision.ops import nms

from bsm.exporting import is_exporting
from bsm.instance.box_ops import pairwise_iou

_ROUNDS = 32
"""Rounds of the fixed-point iteration. Each round settles boxes whose chain of better, overlapping
boxes is one longer; random crowds of 2000 boxes needed at most 10 rounds. At the end of a longer
chain, boxes could stay that greedy NMS drops."""


def keep_after_nms(
    boxes_xyxy: Tensor, valid: Tensor, *, iou_threshold: float, category_index: Tensor | None = None
) -> Tensor:
    """Mark the boxes (G, n) to keep: those that no better kept box overlaps above the threshold.

    Args:
        boxes_xyxy: (G, n, 4), best first.
        valid: (G, n) bool; other boxes are neither kept nor suppress any.
        iou_threshold: overlap above which the worse of two boxes is dropped.
        category_index: (G, n); boxes suppress only boxes of their category.
    """
    if boxes_xyxy.device.type == "cpu" and not is_exporting():
        return _keep_on_cpu(boxes_xyxy, valid, iou_threshold, category_index)
    return keep_without_sync(
        boxes_xyxy, valid, iou_threshold=iou_threshold, category_index=category_index
    )


@torch.no_grad()
def _keep_on_cpu(
    boxes_xyxy: Tensor, valid: Tensor, iou_threshold: float, category_index: Tensor | None
) -> Tensor:
    keep = torch.zeros_like(valid)
    if category_index is not None:
        # Shift categories far apart; in float64, because float32 would round the boxes.
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
def keep_without_sync(
    boxes_xyxy: Tensor, valid: Tensor, *, iou_threshold: float, category_index: Tensor | None = None
) -> Tensor:
    """Do the same as `keep_after_nms` without a host sync, by a fixed-point iteration.

    A box is kept if no better kept box overlaps it. Starting from all boxes, each round applies
    that rule to the last round's result, until nothing changes: the result of greedy NMS.
    """
    n = boxes_xyxy.shape[1]
    overlaps = pairwise_iou(boxes_xyxy, boxes_xyxy) > iou_threshold
    if category_index is not None:
        overlaps &= category_index[:, :, None] == category_index[:, None, :]
    better = torch.ones(n, n, dtype=torch.bool, device=boxes_xyxy.device).triu_(diagonal=1)
    overlaps &= better & valid[:, :, None]
    # Half precision is enough to tell a count of 0 from more, at half the memory traffic.
    dtype = torch.float32 if boxes_xyxy.device.type == "cpu" else torch.float16
    suppresses = overlaps.to(dtype)
    keep = valid
    for _ in range(min(_ROUNDS, n)):
        suppressed = torch.bmm(keep.to(dtype).unsqueeze(1), suppresses).squeeze(1) > 0
        keep = valid & ~suppressed
    return keep
