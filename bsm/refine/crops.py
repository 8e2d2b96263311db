"""Square crops of photos and masks around objects, and the way back.

N images, R crops, S side of a crop
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torchvision.ops import roi_align

MIN_EXTENT_PX = 16.0
"""Least side of a crop in pixels of the photo: less shows nothing around an object."""


def boxes_to_crops(boxes_xyxy: Float[Tensor, "R 4"], *, scale: float) -> Float[Tensor, "R 4"]:
    """Enlarge boxes about their centers to squares that hold them with some surroundings.

    Args:
        boxes_xyxy: of the objects, in pixels.
        scale: side of the square in longer sides of the box.
    """
    center = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    extent = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).amax(dim=1, keepdim=True)
    half = (extent * (scale / 2)).clamp(min=MIN_EXTENT_PX / 2)
    return torch.cat([center - half, center + half], dim=1)


def crop(
    planes: Float[Tensor, "N C H W"],
    crops_xyxy: Float[Tensor, "R 4"],
    index: Integer[Tensor, " R"],
    *,
    side: int,
) -> Float[Tensor, "R C S S"]:
    """Average the pixels of each cell of the crops; what lies beyond the image is 0.

    Args:
        planes: images or masks.
        crops_xyxy: in their pixels.
        index: the plane of each crop.
        side: S.
    """
    rois = torch.cat([index[:, None].to(crops_xyxy.dtype), crops_xyxy], dim=1)
    # As many samples as a cell has pixels, so a reduced photo does not alias.
    sampled: Tensor = roi_align(planes, rois, side, sampling_ratio=0, aligned=True)
    return sampled
