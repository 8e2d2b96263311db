"""The RoIs that masks are trained in, and what their masks are.

Every mask head asks for its targets here, on the grid or at the points that it trains on; whether
they come out of the squeeze field or out of image-sized masks is the recipe's choice.

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
from bsm.points import sample_at


class MaskRois(NamedTuple):
    """RoIs with an object each, and empty ones."""

    rois: Tensor
    """(R, 5): image index and box."""
    category_index: Tensor
    """(R,) int64 in 0..K-1."""
    target_slot: Tensor
    """(R,) int64: the object in the slots of its image."""
    weights: Tensor
    """(R,) float32: 1 for a RoI with an object, 0 for an empty one, which carries no loss."""
    identity: Tensor
    """(R,) int64: tells the RoIs of an image apart; what is drawn for a RoI comes from it and the
    sample's seed."""

    @property
    def boxes_xyxy(self) -> Tensor:
        """(R, 4)."""
        return self.rois[:, 1:]

    @property
    def image_index(self) -> Tensor:
        """(R,) int64."""
        return self.rois[:, 0].long()


@torch.no_grad()
def grid_targets(
    rois: MaskRois, targets: Targets, *, config: TargetConfig, side: int
) -> MaskTargets:
    """The mask and bands of each RoI's object on the RoI's own grid, each (R, M, M).

    Args:
        rois: R RoIs.
        targets: of their images.
        config: source and kernel of the targets.
        side: M.
    """
    kernel_size, unite = config.kernel_size, config.unite_boundary
    image, boxes = rois.image_index, rois.boxes_xyxy
    if config.source == "roi":
        masks = crop_masks(_masks_of(targets), boxes, image, rois.target_slot, side=side)
        return targets_from_masks(masks, kernel_size=kernel_size, unite_boundary=unite)
    distance = sample_field(
        targets.squeeze_field[image, rois.target_slot],
        targets.field_frame_xyxy[image, rois.target_slot],
        boxes,
        side=side,
    )
    return targets_from_distance(distance, kernel_size=kernel_size, unite_boundary=unite)


@torch.no_grad()
def point_targets(
    rois: MaskRois, targets: Targets, points: Tensor, *, config: TargetConfig
) -> Tensor:
    """How much of the object is at points (R, P, 2) of the RoIs: (R, P), 0..1.

    A soft value, as in PointRend: bilinear between the cells of the field, or the pixels of the
    mask, so that a point on the outline has one half.
    """
    image, slot = rois.image_index, rois.target_slot
    pixels = points_in_image(rois.boxes_xyxy, points)
    if config.source == "roi":
        masks = _masks_of(targets)
        planes = masks.flatten(0, 1)[:, None].float()
        return read_points(planes, image * masks.shape[1] + slot, pixels, stride=1)[:, 0]
    inside = targets.squeeze_field[image, slot] > 0
    in_frame = _points_in_frame(targets.field_frame_xyxy[image, slot], pixels)
    return sample_at(inside[:, None].float(), in_frame)[:, 0]


def points_in_image(boxes_xyxy: Tensor, points: Tensor) -> Tensor:
    """Turn points (R, P, 2) of boxes (R, 4) into pixels of the image."""
    corner, far = boxes_xyxy[:, None, :2], boxes_xyxy[:, None, 2:]
    return corner + points * (far - corner)


def _points_in_frame(frame_xyxy: Tensor, pixels: Tensor) -> Tensor:
    corner, extent = frame_xyxy[:, None, :2], (frame_xyxy[:, 2:] - frame_xyxy[:, :2])[:, None]
    # An empty slot has a frame without extent; its points carry no weight but must be finite.
    return (pixels - corner) / torch.where(extent == 0, 1.0, extent)


def _masks_of(targets: Targets) -> Tensor:
    if targets.masks is None:
        raise ValueError(
            "targets.masks: missing. The target source 'roi' cuts masks out of images: collate "
            "them with the batch, or set mask_head.targets.source to 'field'."
        )
    return targets.masks
