"""Regions of interest: sample those to train, and pool their features.

N images, S RoI slots in each, R RoIs of all images, T target slots, P proposals, D channels
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import roi_align

from bsm.configs.instance import BoxConvention, BoxHeadConfig
from bsm.exporting import is_exporting
from bsm.instance.box_ops import box_area, has_area, pairwise_iou
from bsm.instance.proposals import Proposals
from bsm.instance.tensors import Targets
from bsm.sampling import ROIS, draw_keys, subsample

STRIDES = (4, 8, 16, 32)
"""Of P2 to P5."""
_CANONICAL_SIDE_PX = 224.0
_CANONICAL_LEVEL = 2
"""FPN eq. 1: a box of 224 pixels belongs to P4, the level with index 2."""
_TARGET_IDENTITY = 7 << 28
"""Identity of the first target when RoIs are sampled; anchors, with 5 levels, are below it."""


class SampledRois(NamedTuple):
    """RoIs to train, foreground first, except in the later stages of a cascade."""

    boxes_xyxy: Tensor
    """(N, S, 4)."""
    category_index: Tensor
    """(N, S) int64 in 0..K; K, the last, is the background."""
    target_slot: Tensor
    """(N, S) int64: the target of a foreground RoI."""
    foreground: Tensor
    """(N, S) bool."""
    valid: Tensor
    """(N, S) bool: whether the slot holds a RoI."""


@torch.no_grad()
def sample_rois(
    proposals: Proposals, targets: Targets, *, config: BoxHeadConfig, num_classes: int
) -> SampledRois:
    """Sample the RoIs of a training step from the proposals and the target boxes."""
    boxes = torch.cat((proposals.boxes_xyxy, targets.boxes_xyxy), dim=1)
    valid = torch.cat((proposals.valid, targets.valid), dim=1) & has_area(boxes)
    best, matched = _find_best_targets(boxes, targets)
    iou = config.cascade_ious[0] if config.kind == "cascade" else config.foreground_iou
    positive = valid & (best >= iou)
    # A proposal is drawn by its anchor, not its rank, because rounding swaps ranks.
    slot_identity = torch.arange(targets.valid.shape[1], device=boxes.device) + _TARGET_IDENTITY
    identity = torch.cat((proposals.identity, slot_identity.expand(len(boxes), -1)), dim=1)
    keys = draw_keys(targets.sample_seed, identity, purpose=ROIS)
    num_slots = min(config.samples_per_image, boxes.shape[1])
    max_positive = max(1, int(config.samples_per_image * config.positive_fraction))
    slots = subsample(
        positive,
        valid & ~positive,
        keys,
        num_slots=num_slots,
        max_positive=min(max_positive, num_slots),
    )
    target_slot = matched.gather(1, slots.candidate)
    category = targets.category_index.gather(1, target_slot)
    return SampledRois(
        boxes.gather(1, slots.candidate[..., None].expand(-1, -1, 4)),
        category.masked_fill(~slots.positive, num_classes),
        target_slot,
        slots.positive,
        slots.valid,
    )


@torch.no_grad()
def rematch_rois(
    boxes_xyxy: Tensor, valid: Tensor, targets: Targets, *, foreground_iou: float, num_classes: int
) -> SampledRois:
    """Match the boxes (N, S, 4) of all valid slots (N, S) with the targets."""
    valid = valid & has_area(boxes_xyxy)
    best, matched = _find_best_targets(boxes_xyxy, targets)
    foreground = valid & (best >= foreground_iou)
    category = targets.category_index.gather(1, matched).masked_fill(~foreground, num_classes)
    return SampledRois(boxes_xyxy, category, matched, foreground, valid)


def _find_best_targets(boxes_xyxy: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Find the largest overlap (N, S) of each box with a target, and that target's slot (N, S)."""
    iou = pairwise_iou(targets.boxes_xyxy, boxes_xyxy)
    best, matched = iou.masked_fill_(~targets.valid[:, :, None], -1.0).max(dim=1)
    return best, matched


def find_used_slots(valid: Tensor) -> Tensor:
    """Find the flat indices of the slots (N, S) to compute: all, or on the CPU the valid ones.

    Counting the valid ones stalls a GPU but is free on a CPU. There is always at least one slot, so
    every layer runs and every parameter has a gradient.
    """
    flat = valid.flatten()
    if flat.device.type != "cpu" or is_exporting():
        return torch.arange(flat.numel(), device=flat.device)
    used = flat.nonzero().squeeze(1)
    return used if len(used) else used.new_zeros(1)


def gather_rois(boxes_xyxy: Tensor, used: Tensor) -> Tensor:
    """Gather the RoIs (R, 5), image index and box, of the used slots of boxes (N, S, 4)."""
    image_index = (used // boxes_xyxy.shape[1]).to(boxes_xyxy.dtype)
    return torch.cat((image_index[:, None], boxes_xyxy.flatten(0, 1)[used]), dim=1)


def assign_levels(boxes_xyxy: Tensor, *, box_convention: BoxConvention = "detectron2") -> Tensor:
    """Assign each box to the pyramid level (R,) to pool it from."""
    side = box_area(boxes_xyxy).clamp(min=0).sqrt()
    # Exactly 224 px must not round down to the level below; each library has its own epsilon.
    if box_convention == "torchvision":
        level = torch.floor(_CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE_PX) + 1e-6)
    else:
        level = torch.floor(_CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE_PX + 1e-8))
    return level.clamp(0, len(STRIDES) - 1).long()


def pool_rois(
    features: Sequence[Tensor],
    rois: Tensor,
    *,
    side: int,
    box_convention: BoxConvention = "detectron2",
) -> Tensor:
    """Pool each RoI from its own level of P2 to P5 by RoIAlign: (R, D, side, side).

    It is detectron2's ROIAlignV2 (aligned, one sample per feature cell) or torchvision's
    MultiScaleRoIAlign (not aligned, 2 x 2 samples per RoI cell).
    """
    level = assign_levels(rois[:, 1:], box_convention=box_convention)
    if rois.device.type == "cpu" and not is_exporting():
        return _pool_level_by_level(features, rois, level, side=side, box_convention=box_convention)
    return pool_without_sync(features, rois, level, side=side, box_convention=box_convention)


def pool_finest(
    feature: Tensor,
    rois: Tensor,
    *,
    side: int,
    box_convention: BoxConvention = "detectron2",
    samples_per_cell: int | None = None,
) -> Tensor:
    """Pool every RoI from P2, whatever its size, by RoIAlign: (R, D, side, side).

    Args:
        feature: P2.
        rois: image index and box.
        side: cells along a side.
        box_convention: how boxes become cells.
        samples_per_cell: along a side; None takes the box convention's.
    """
    return _roi_align(
        feature,
        rois,
        side,
        stride=STRIDES[0],
        box_convention=box_convention,
        sampling_ratio=samples_per_cell,
    )


def read_points(
    feature: Tensor, image_index: Tensor, pixels_xy: Tensor, *, stride: int = STRIDES[0]
) -> Tensor:
    """Read a feature (N, D, H, W), bilinear, at pixels (R, P, 2) of images (R,): (R, D, P).

    Outside the feature are zeros, as for the grid_sample of detectron2's PointRend. RoIAlign with
    one sample reads a box without extent at exactly that point, so the number of RoIs per image is
    not needed, and features are not copied R times. But RoIAlign repeats the border, so values
    beyond the outermost centers are multiplied by the share that zeros would leave.
    """
    num_rois, num_points = pixels_xy.shape[:2]
    image = image_index.to(pixels_xy.dtype)[:, None, None].expand(-1, num_points, 1)
    boxes = torch.cat((image, pixels_xy, pixels_xy), dim=2).flatten(0, 1)
    values = _roi_align(
        feature, boxes, 1, stride=stride, box_convention="detectron2", sampling_ratio=1
    )
    values = values.view(num_rois, num_points, feature.shape[1]).transpose(1, 2)
    height, width = feature.shape[-2:]
    x, y = (pixels_xy.float() / stride).unbind(-1)
    fade_x, fade_y = (
        (torch.minimum(at, size - at) + 0.5).clamp(0, 1) for at, size in ((x, width), (y, height))
    )
    return values * (fade_x * fade_y)[:, None].to(values.dtype)


def pool_without_sync(
    features: Sequence[Tensor],
    rois: Tensor,
    level: Tensor,
    *,
    side: int,
    box_convention: BoxConvention = "detectron2",
) -> Tensor:
    """Pool all RoIs from all levels, shrunk to size 0 on the wrong ones, and add them up.

    An index of each level's RoIs would have a length that the host must know. In detectron2's
    box convention a RoI of size 0 has no sampling points: it costs almost nothing and gives zeros.
    In torchvision's it is one cell large, costs as much as any, and is masked out.
    """
    pooled = []
    for index, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        is_own = (level == index).to(rois.dtype)[:, None]
        shrunk = torch.cat((rois[:, :1], rois[:, 1:3].repeat(1, 2)), dim=1)
        own = torch.lerp(shrunk, rois, is_own)
        part = _roi_align(feature, own, side, stride=stride, box_convention=box_convention)
        if box_convention == "torchvision":
            part = part * is_own[:, :, None, None].to(part.dtype)
        pooled.append(part)
    return torch.stack(pooled).sum(0)


def _pool_level_by_level(
    features: Sequence[Tensor],
    rois: Tensor,
    level: Tensor,
    *,
    side: int,
    box_convention: BoxConvention,
) -> Tensor:
    order = level.argsort(stable=True)
    counts = torch.bincount(level, minlength=len(STRIDES)).tolist()
    parts = rois[order].split(counts)  # type: ignore[no-untyped-call]
    pooled = [
        _roi_align(feature, part, side, stride=stride, box_convention=box_convention)
        for feature, part, stride in zip(features, parts, STRIDES, strict=True)
        if len(part) or not len(rois)  # without any RoI an empty part gives the shape
    ]
    if len(pooled) == 1 or not len(rois):
        return pooled[0]
    back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
    return torch.cat(pooled)[back]


def _roi_align(
    feature: Tensor,
    rois: Tensor,
    side: int,
    *,
    stride: int,
    box_convention: BoxConvention,
    sampling_ratio: int | None = None,
) -> Tensor:
    # In float32 even for bfloat16 features: its 8 bits would move a box at pixel 1,000 by up to 4.
    is_d2 = box_convention == "detectron2"
    pooled: Tensor = roi_align(
        feature.float(),
        rois.float(),
        side,
        1.0 / stride,
        sampling_ratio=(0 if is_d2 else 2) if sampling_ratio is None else sampling_ratio,
        aligned=is_d2,
    )
    return pooled.to(feature.dtype)
