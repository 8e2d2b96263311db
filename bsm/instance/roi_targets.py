"""Mask targets of RoIs, on a grid or at points.

Every mask head gets its targets here; the config decides whether they are read from the squeeze
field or from image-sized masks.

N images, T target slots, R RoIs of all images, M side of a target, P points
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bsm.configs.shared import TargetConfig
from bsm.field import MaskTargets, sample_field, targets_from_distance
from bsm.instance.roi import read_points
from bsm.instance.tensors import Targets
from bsm.morphology import crop_masks, targets_from_masks
from bsm.points import sample_points


class MaskRois(NamedTuple):
    """RoIs to train masks in, with an object each, and empty ones."""

    rois: Tensor
    """(R, 5): image index and box."""
    category_index: Tensor
    """(R,) int64 in 0..K-1."""
    target_slot: Tensor
    """(R,) int64: slot of its object in the targets of its image."""
    weights: Tensor
    """(R,) float32: 1 for a RoI with an object, 0 for an empty one, which has no loss."""
    identity: Tensor
    """(R,) int64: unique number of a RoI in its image; with the sample's seed, it determines the
    points drawn for the RoI."""

    @property
    def boxes_xyxy(self) -> Tensor:
        """(R, 4)."""
        return self.rois[:, 1:]

    @property
    def image_index(self) -> Tensor:
        """(R,) int64."""
        return self.rois[:, 0].long()


@torch.no_grad()
def make_grid_targets(
    rois: MaskRois, targets: Targets, *, config: TargetConfig, side: int
) -> MaskTargets:
    """Make the mask and bands of each RoI's object on the RoI's own grid, each (R, M, M).

    Args:
        rois: R RoIs.
        targets: of their images.
        config: source and kernel of the targets.
        side: M.
    """
    kernel_size, unite = config.kernel_size, config.unite_boundary
    if config.source == "roi":
        masks = _crop_masks(rois, targets, side=side)
        return targets_from_masks(masks, kernel_size=kernel_size, unite_boundary=unite)
    distance = _sample_distance(rois, targets, side=side)
    return targets_from_distance(distance, kernel_size=kernel_size, unite_boundary=unite)


@torch.no_grad()
def make_mask_targets(
    rois: MaskRois, targets: Targets, *, config: TargetConfig, side: int
) -> Tensor:
    """Make the masks (R, M, M) of `make_grid_targets` without the bands."""
    if config.source == "roi":
        return _crop_masks(rois, targets, side=side)
    return (_sample_distance(rois, targets, side=side) > 0).float()


@torch.no_grad()
def make_point_targets(
    rois: MaskRois, targets: Targets, points: Tensor, *, config: TargetConfig
) -> Tensor:
    """Make the soft mask values (R, P), 0..1, at points (R, P, 2) of the RoIs.

    As in PointRend they are bilinear, here between the cells of the field or the pixels of the
    mask, so a point on the outline has one half.
    """
    image, slot = rois.image_index, rois.target_slot
    pixels = to_image_pixels(rois.boxes_xyxy, points)
    if config.source == "roi":
        masks = _require_masks(targets)
        planes = masks.flatten(0, 1)[:, None].float()
        pixels = pixels * _get_mask_scale(targets, rois)[:, None]
        return read_points(planes, image * masks.shape[1] + slot, pixels, stride=1)[:, 0]
    inside = targets.squeeze_field[image, slot] > 0
    in_frame = _to_frame_points(targets.field_frame_xyxy[image, slot], pixels)
    return sample_points(inside[:, None].float(), in_frame)[:, 0]


def to_image_pixels(boxes_xyxy: Tensor, points: Tensor) -> Tensor:
    """Convert points (R, P, 2) of boxes (R, 4) to pixels of the image."""
    corner, far = boxes_xyxy[:, None, :2], boxes_xyxy[:, None, 2:]
    return corner + points * (far - corner)


def _crop_masks(rois: MaskRois, targets: Targets, *, side: int) -> Tensor:
    boxes = rois.boxes_xyxy * _get_mask_scale(targets, rois).repeat(1, 2)
    masks = _require_masks(targets)
    return crop_masks(masks, boxes, rois.image_index, rois.target_slot, side=side)


def _sample_distance(rois: MaskRois, targets: Targets, *, side: int) -> Tensor:
    image, slot = rois.image_index, rois.target_slot
    return sample_field(
        targets.squeeze_field.flatten(0, 1),
        targets.field_frame_xyxy[image, slot],
        rois.boxes_xyxy,
        side=side,
        field_index=image * targets.valid.shape[1] + slot,
    )


def _to_frame_points(frame_xyxy: Tensor, pixels: Tensor) -> Tensor:
    corner, extent = frame_xyxy[:, None, :2], (frame_xyxy[:, 2:] - frame_xyxy[:, :2])[:, None]
    # An empty slot has a frame without extent; its points have weight 0 but must be finite.
    return (pixels - corner) / torch.where(extent == 0, 1.0, extent)


def _get_mask_scale(targets: Targets, rois: MaskRois) -> Tensor:
    """Get the pixels (R, 2) of each RoI's mask per pixel of the input, (x, y)."""
    if targets.mask_scale_xy is None:
        return torch.ones_like(rois.boxes_xyxy[:, :2])
    return targets.mask_scale_xy[rois.image_index, rois.target_slot]


def _require_masks(targets: Targets) -> Tensor:
    if targets.masks is None:
        raise ValueError(
            "targets.masks: missing. The target source 'roi' crops masks from images: collate them "
            "with the batch, or set mask_head.targets.source to 'field'."
        )
    return targets.masks
