"""Box operations: overlap, the regression between two boxes, clipping.

Boxes are (..., 4) float tensors of absolute, half-open pixels x0, y0, x1, y1.
"""

import math

import torch
from torch import Tensor

# detectron2 Box2BoxTransform: one regression scales a box at most 1000 / 16 times.
SCALE_CLAMP = math.log(1000.0 / 16.0)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """Compute areas (...) in square pixels."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def has_area(boxes_xyxy: Tensor, *, min_side_px: float = 0.0) -> Tensor:
    """Mark boxes (...) with positive sides of at least `min_side_px`."""
    sides = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return ((sides > 0) & (sides >= min_side_px)).all(-1)


@torch.no_grad()
def pairwise_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Compute the intersection over union of (..., n, 4) with (..., m, 4), as (..., n, m).

    For two boxes without area 0 / 0 becomes 0. It works in place, because with all anchors of an
    image on one side this is the largest tensor of the model.
    """
    a, b = boxes_xyxy.unsqueeze(-2), others_xyxy.unsqueeze(-3)
    inter = torch.minimum(a[..., 2], b[..., 2])
    inter = inter.sub_(torch.maximum(a[..., 0], b[..., 0])).clamp_(min=0)
    height = torch.minimum(a[..., 3], b[..., 3])
    inter = inter.mul_(height.sub_(torch.maximum(a[..., 1], b[..., 1])).clamp_(min=0))
    union = torch.add(box_area(a), box_area(b), out=height).sub_(inter)
    return inter.div_(union).nan_to_num_(nan=0.0)


def encode_boxes(
    boxes_xyxy: Tensor, targets_xyxy: Tensor, *, weights: tuple[float, float]
) -> Tensor:
    """Compute the regression (..., 4) that turns boxes into targets.

    Boxes or targets without area give 0 instead of infinity, so that an empty slot, whose loss is
    multiplied by 0, stays finite.

    Args:
        boxes_xyxy: (..., 4).
        targets_xyxy: (..., 4).
        weights: of the shift of the center and of the growth of the sides.
    """
    size, target_size = (t[..., 2:] - t[..., :2] for t in (boxes_xyxy, targets_xyxy))
    center = boxes_xyxy[..., :2] + 0.5 * size
    target_center = targets_xyxy[..., :2] + 0.5 * target_size
    shift = (target_center - center) / size * weights[0]
    growth = torch.log(target_size / size) * weights[1]
    real = (has_area(boxes_xyxy) & has_area(targets_xyxy)).unsqueeze(-1)
    return torch.cat((shift, growth), dim=-1).masked_fill(~real, 0.0)


def decode_boxes(deltas: Tensor, boxes_xyxy: Tensor, *, weights: tuple[float, float]) -> Tensor:
    """Apply regressions (..., 4) to boxes that broadcast against them."""
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    center = boxes_xyxy[..., :2] + 0.5 * size
    new_center = deltas[..., :2] / weights[0] * size + center
    half = 0.5 * torch.exp((deltas[..., 2:] / weights[1]).clamp(max=SCALE_CLAMP)) * size
    return torch.cat((new_center - half, new_center + half), dim=-1)


def clip_boxes(boxes_xyxy: Tensor, image_sizes_hw: Tensor) -> Tensor:
    """Clip boxes (N, ..., 4) to the sizes (N, 2) of their images."""
    limit = image_sizes_hw.flip(-1).repeat(1, 2).to(boxes_xyxy.dtype)
    limit = limit.view(-1, *(1,) * (boxes_xyxy.dim() - 2), 4)
    return torch.minimum(boxes_xyxy.clamp(min=0), limit)
