"""Square crops of photos and masks around objects, and the way back.

N images, R crops, H, W image size, S side of a crop in cells, E its side in pixels of the photo
"""

from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

MIN_EXTENT_PX = 16.0
"""Least side of a crop in pixels of the photo: less shows nothing around an object."""


_Part: TypeAlias = tuple[slice, slice]


class Window(NamedTuple):
    """A square of whole pixels, which may reach beyond its photo."""

    left: int
    top: int
    extent: int
    """E."""

    def overlap(self, size_hw: tuple[int, int]) -> tuple[_Part, _Part]:
        """Return the rows and columns of the photo that it covers, and the same of the square."""
        rows, own_rows = _clip(self.top, self.extent, side=size_hw[0])
        columns, own_columns = _clip(self.left, self.extent, side=size_hw[1])
        return (rows, columns), (own_rows, own_columns)


def _clip(start: int, extent: int, *, side: int) -> _Part:
    first, last = max(start, 0), min(start + extent, side)
    return slice(first, last), slice(first - start, last - start)


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


def round_crops(crops_xyxy: Float[Tensor, "R 4"]) -> list[Window]:
    """Round squares to whole pixels; what a square holds of whole pixels stays inside."""
    extent = (crops_xyxy[:, 2:3] - crops_xyxy[:, :1] - 1e-3).ceil()
    corner = ((crops_xyxy[:, :2] + crops_xyxy[:, 2:] - extent) / 2).round()
    return [Window(*row) for row in torch.cat([corner, extent], dim=1).long().tolist()]


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


def cut_window(
    photo: Shaped[Tensor, "3 H W"], mask: Bool[Tensor, "H W"], window: Window, *, side: int
) -> Float[Tensor, "4 S S"]:
    """Crop a photo and a mask of it, 0 to 255 both; what lies beyond the photo is 0.

    On a CPU this takes a fifth of the time of `crop`, and no copy of the whole mask.

    Args:
        photo: 0 to 255, any dtype; uint8 is the fastest.
        mask: of the photo.
        window: to crop.
        side: S.
    """
    of_photo, of_window = window.overlap((mask.shape[0], mask.shape[1]))
    part = photo.new_zeros(1, 4, window.extent, window.extent)
    inside = part[0, :, *of_window]
    inside[:3] = photo[:, *of_photo]
    torch.mul(mask[of_photo], 255, out=inside[3])
    resized = F.interpolate(part, (side, side), mode="bilinear", antialias=True)
    return resized[0].float()


def paste_window(logits: Float[Tensor, "S S"], mask: Bool[Tensor, "H W"], window: Window) -> None:
    """Replace what a window shows of a mask; a mask that would vanish stays."""
    size = (window.extent, window.extent)
    resized = F.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    of_photo, of_window = window.overlap((mask.shape[0], mask.shape[1]))
    found = resized[of_window] > 0
    if found.any():
        mask[of_photo] = found
