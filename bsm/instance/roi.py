"""Regions of interest: which are trained, and their features.

N images, S RoI slots in each, R RoIs of all images, T target slots, P proposals, D channels
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import roi_align

from bsm.configs.instance import BoxConvention, BoxHeadConfig
from bsm.instance.box_ops import box_area, has_area, pairwise_iou
from bsm.instance.proposals import Proposals
from bsm.instance.tensors import Targets
from bsm.sampling import ROIS, pick, random_keys

STRIDES = (4, 8, 16, 32)
"""Of P2 to P5."""
_CANONICAL_SIDE_PX = 224.0
_CANONICAL_LEVEL = 2
"""FPN eq. 1: a box of 224 pixels belongs to P4, the level with index 2."""
_TARGET_IDENTITY = 7 << 28
"""Targets are counted from here in the picks; anchors, with 5 levels, have identities below."""


class SampledRois(NamedTuple):
    """The RoIs that carry loss; foreground comes first, but in the later stages of a cascade."""

    boxes_xyxy: Tensor
    """(N, S, 4)."""
    category_index: Tensor
    """(N, S) int64 in 0..K; K, the last, is the background."""
    target_slot: Tensor
    """(N, S) int64: the target of a foreground RoI."""
    foreground: Tensor
    """(N, S) bool."""
    valid: Tensor
    """(N, S) bool: which slots hold a RoI."""


@torch.no_grad()
def sample_rois(
    proposals: Proposals, targets: Targets, *, config: BoxHeadConfig, num_classes: int
) -> SampledRois:
    """Pick the RoIs of a training step from the proposals and the target boxes themselves."""
    boxes = torch.cat((proposals.boxes_xyxy, targets.boxes_xyxy), dim=1)
    valid = torch.cat((proposals.valid, targets.valid), dim=1) & has_area(boxes)
    best, matched = _best_targets(boxes, targets)
    iou = config.cascade_ious[0] if config.kind == "cascade" else config.foreground_iou
    positive = valid & (best >= iou)
    # A proposal is picked by its anchor, not its rank: rounding swaps ranks.
    slot_identity = torch.arange(targets.valid.shape[1], device=boxes.device) + _TARGET_IDENTITY
    identity = torch.cat((proposals.identity, slot_identity.expand(len(boxes), -1)), dim=1)
    keys = random_keys(targets.sample_seed, identity, purpose=ROIS)
    num_slots = min(config.samples_per_image, boxes.shape[1])
    max_positive = max(1, int(config.samples_per_image * config.positive_fraction))
    slots = pick(
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
    """Match boxes (N, S, 4) of the slots that are valid (N, S) with the targets, all of them."""
    valid = valid & has_area(boxes_xyxy)
    best, matched = _best_targets(boxes_xyxy, targets)
    foreground = valid & (best >= foreground_iou)
    category = targets.category_index.gather(1, matched).masked_fill(~foreground, num_classes)
    return SampledRois(boxes_xyxy, category, matched, foreground, valid)


def _best_targets(boxes_xyxy: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """The largest overlap (N, S) of each box with a target, and which target that is."""
    iou = pairwise_iou(targets.boxes_xyxy, boxes_xyxy)
    best, matched = iou.masked_fill_(~targets.valid[:, :, None], -1.0).max(dim=1)
    return best, matched


def used_slots(valid: Tensor) -> Tensor:
    """Flat indices of the slots (N, S) to compute: all, or on the CPU only those that are valid.

    Asking how many there are stalls a GPU but costs a CPU nothing. One slot always stays, so that
    every layer runs and every parameter has a gradient.
    """
    flat = valid.flatten()
    if flat.device.type != "cpu":
        return torch.arange(flat.numel(), device=flat.device)
    used = flat.nonzero().squeeze(1)
    return used if len(used) else used.new_zeros(1)


def rois_of_slots(boxes_xyxy: Tensor, used: Tensor) -> Tensor:
    """RoIs (R, 5), image index and box, of the used slots of boxes (N, S, 4)."""
    image_index = (used // boxes_xyxy.shape[1]).to(boxes_xyxy.dtype)
    return torch.cat((image_index[:, None], boxes_xyxy.flatten(0, 1)[used]), dim=1)


def roi_levels(boxes_xyxy: Tensor, *, box_convention: BoxConvention = "detectron2") -> Tensor:
    """Index (R,) of the pyramid level that each box is pooled from."""
    side = box_area(boxes_xyxy).clamp(min=0).sqrt()
    # Exactly 224 px must not fall to the level below by rounding; each has its own way.
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
    """RoIAlign (R, D, side, side) of each RoI from its own level of P2 to P5.

    detectron2's ROIAlignV2: aligned, as many samples per cell as it has feature cells; or
    torchvision's MultiScaleRoIAlign: not aligned, 2 x 2 samples per cell.
    """
    level = roi_levels(rois[:, 1:], box_convention=box_convention)
    if rois.device.type == "cpu":
        return _pool_level_by_level(features, rois, level, side=side, box_convention=box_convention)
    return pool_without_host(features, rois, level, side=side, box_convention=box_convention)


def pool_finest(
    feature: Tensor, rois: Tensor, *, side: int, box_convention: BoxConvention = "detectron2"
) -> Tensor:
    """RoIAlign (R, D, side, side) of every RoI from P2, whatever its size."""
    return _roi_align(feature, rois, side, stride=STRIDES[0], box_convention=box_convention)


def pool_cell_centers(feature: Tensor, rois: Tensor, *, side: int) -> Tensor:
    """Read P2 at the centers of each RoI's cells, one sample a cell: (R, D, side, side)."""
    return _roi_align(
        feature, rois, side, stride=STRIDES[0], box_convention="detectron2", sampling_ratio=1
    )


def read_points(
    feature: Tensor, image_index: Tensor, pixels_xy: Tensor, *, stride: int = STRIDES[0]
) -> Tensor:
    """Read a feature (N, D, H, W), bilinear, at pixels (R, P, 2) of images (R,): (R, D, P).

    RoIAlign of a box without extent, with one sample, reads just there. So nothing need know how
    many RoIs an image has, and nothing of the size of R features is made.
    """
    num_rois, num_points = pixels_xy.shape[:2]
    image = image_index.to(pixels_xy.dtype)[:, None, None].expand(-1, num_points, 1)
    boxes = torch.cat((image, pixels_xy, pixels_xy), dim=2).flatten(0, 1)
    found = _roi_align(
        feature, boxes, 1, stride=stride, box_convention="detectron2", sampling_ratio=1
    )
    return found.view(num_rois, num_points, feature.shape[1]).transpose(1, 2)


def pool_without_host(
    features: Sequence[Tensor],
    rois: Tensor,
    level: Tensor,
    *,
    side: int,
    box_convention: BoxConvention = "detectron2",
) -> Tensor:
    """Pool all RoIs on all levels, those of other levels shrunk to nothing, and add.

    In detectron2's box_convention a RoI without size has no sampling points: it costs next to nothing and
    gives zeros. So no index of the RoIs of a level is needed, whose length the host would have to
    know. In torchvision's it is one cell large, costs as much as any, and is taken out again.
    """
    pooled = []
    for index, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        mine = (level == index).to(rois.dtype)[:, None]
        shrunk = torch.cat((rois[:, :1], rois[:, 1:3].repeat(1, 2)), dim=1)
        own = torch.lerp(shrunk, rois, mine)
        part = _roi_align(feature, own, side, stride=stride, box_convention=box_convention)
        if box_convention == "torchvision":
            part = part * mine[:, :, None, None].to(part.dtype)
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
        if len(part) or not len(rois)  # of no RoIs at all an empty part gives the shape
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
    # In float32, whatever the features are: bfloat16 holds 8 bits, and would move a box that lies
    # at pixel 1,000 by up to 4.
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
