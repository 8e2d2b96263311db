"""Draw targets for training steps that are only timed."""

import torch

from bsm.field import boxes_to_frames, mask_to_field
from bsm.instance.tensors import Targets
from pipeline.data.schema import FIELD_SIDE


def draw_targets(
    images: int, objects: int, size_hw: tuple[int, int], *, with_masks: bool = True
) -> Targets:
    """Draw disks, the same in every call.

    Args:
        images: of the batch.
        objects: per image.
        size_hw: of an image.
        with_masks: draw whole masks too, beside the squeeze fields.
    """
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor(size_hw[::-1], dtype=torch.float32) / 4
    corners = torch.rand(images, objects, 2, generator=generator) * extent * 2.5
    sides = extent * (0.3 + torch.rand(images, objects, 2, generator=generator))
    boxes = torch.cat([corners, corners + sides], dim=-1)
    at = torch.arange(FIELD_SIDE) + 0.5 - FIELD_SIDE / 2
    disk = mask_to_field((at[:, None] ** 2 + at**2 < (FIELD_SIDE / 3) ** 2)[None])[0]
    return Targets(
        boxes_xyxy=boxes,
        category_index=torch.zeros(images, objects, dtype=torch.int64),
        valid=torch.ones(images, objects, dtype=torch.bool),
        squeeze_field=disk.expand(images, objects, -1, -1),
        field_frame_xyxy=boxes_to_frames(boxes),
        sample_seed=torch.arange(images),
        masks=_draw_masks(corners + sides / 2, sides / 2, size_hw) if with_masks else None,
    )


def _draw_masks(
    centers_xy: torch.Tensor, radii_xy: torch.Tensor, size_hw: tuple[int, int]
) -> torch.Tensor:
    """Draw disks (N, T, H, W), uint8, of centers and radii (N, T, 2)."""
    y, x = (torch.arange(side) + 0.5 for side in size_hw)
    center, radius = centers_xy[..., None, None], radii_xy[..., None, None]
    distance = ((x - center[:, :, 0]) / radius[:, :, 0]) ** 2
    distance = distance + ((y[:, None] - center[:, :, 1]) / radius[:, :, 1]) ** 2
    return (distance < 1).to(torch.uint8)
