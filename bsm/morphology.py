"""Targets as in the paper and its released code: morphology on each RoI's own mask.

This is the exact reference for the squeeze field, and the "roi" target source. Unlike the field, it
needs image-sized masks in the batch and K^2 values for every cell.

N images, T target slots, R rois, M side of a target, K side of the kernel, H, W image size
"""

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

from bsm.field import MaskTargets


def targets_from_masks(
    masks: Shaped[Tensor, "R M M"], *, kernel_size: int, unite_boundary: bool
) -> MaskTargets:
    """Make the four targets of each mask on its own grid.

    The border of the grid does not erode, as in cv2. The boundary is the 3 x 3 Laplacian of the
    mask, which pads with zeros: it marks the mask minus its erosion by 3 x 3, and for that erosion
    alone the border of the grid counts as outside.

    Args:
        masks: 0/1 or bool.
        kernel_size: side of the dilation and erosion kernel in cells, odd (sec. 4.2: 5).
        unite_boundary: unite both bands with the boundary, as the released code does (eq. 3 does
            not).

    Raises:
        ValueError: kernel_size is even, so its band would be off center.
    """
    # Only this target source needs kornia, which takes a second to import.
    from kornia.morphology import dilation, erosion  # noqa: PLC0415

    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size {kernel_size}: the band of an even kernel is off center. "
            f"Use {kernel_size - 1} or {kernel_size + 1}."
        )
    mask = masks.float()[:, None]
    kernel = mask.new_ones(kernel_size, kernel_size)
    # The unfold engine is fast on a CPU and exact; "geodesic" ignores the border.
    dilated = dilation(mask, kernel, border_type="geodesic", engine="unfold")
    eroded = erosion(mask, kernel, border_type="geodesic", engine="unfold")
    core = erosion(
        mask, mask.new_ones(3, 3), border_type="constant", border_value=0.0, engine="unfold"
    )
    boundary = mask - core
    contraction, expansion = dilated - mask, mask - eroded
    if unite_boundary:
        contraction = torch.maximum(contraction, boundary)
        expansion = torch.maximum(expansion, boundary)
    return MaskTargets(mask[:, 0], boundary[:, 0], contraction[:, 0], expansion[:, 0])


def crop_masks(
    masks: Shaped[Tensor, "N T H W"],
    boxes_xyxy: Float[Tensor, "R 4"],
    image_index: Integer[Tensor, " R"],
    slot_index: Integer[Tensor, " R"],
    *,
    side: int,
) -> Float[Tensor, "R M M"]:
    """Crop and resample each roi's mask: RoIAlign, then a threshold of one half.

    Args:
        masks: 0/1 or bool, at image size.
        boxes_xyxy: the rois, absolute pixels.
        image_index: the image of each roi.
        slot_index: the target slot of each roi in its image.
        side: cells along a side of the result.
    """
    from torchvision.ops import roi_align  # noqa: PLC0415  as kornia above

    slots = masks.shape[1]
    if masks.shape[0] * slots == 0:  # a batch without objects has rois, but no mask to crop
        return boxes_xyxy.new_zeros(len(boxes_xyxy), side, side)
    plane = (image_index * slots + slot_index).to(boxes_xyxy.dtype)
    coverage: Tensor = roi_align(
        masks.flatten(0, 1)[:, None].to(boxes_xyxy.dtype),
        torch.cat([plane[:, None], boxes_xyxy], dim=1),
        output_size=side,
        sampling_ratio=0,  # as many samples as pixels (detectron2)
        aligned=True,
    )
    return (coverage[:, 0] >= 0.5).to(boxes_xyxy.dtype)
