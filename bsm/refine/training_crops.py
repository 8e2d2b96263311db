"""Crops to train a refiner on: objects of each image, all of them or a part, and damaged masks.

N images, T target slots, R crops, S side of a crop
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bsm.configs.refine import RefinerConfig
from bsm.instance.tensors import Targets
from bsm.refine.crops import boxes_to_crops, crop
from bsm.refine.damage import damage_masks
from bsm.sampling import draw_keys, draw_uniforms

CROPS = 5
"""Purpose of a draw: which objects are refined, and which crops of them."""
WINDOWS = 6
"""Purpose of a draw: the cell of the outline that a window is centered on."""


class TrainingCrops(NamedTuple):
    """R crops, a fixed number for each image."""

    pixels: Tensor
    """(R, 3, S, S) float32, 0 to 255."""
    truth: Tensor
    """(R, S, S) float32 in 0..1: the share of each cell that the object covers."""
    given: Tensor
    """(R, S, S) float32 0/1: the damaged mask."""
    weights: Tensor
    """(R,) float32: 1 for an object, 0 for an empty slot."""


@torch.no_grad()
def make_training_crops(
    images: Tensor, targets: Targets, *, config: RefinerConfig
) -> TrainingCrops:
    """Draw the objects of each image, their crops and the damage, all from the sample's seed.

    Args:
        images: (N, 3, H, W).
        targets: with whole masks.
        config: number and size of crops.

    Raises:
        ValueError: the targets have no masks.
    """
    masks, scale_xy = targets.masks, targets.mask_scale_xy
    if masks is None or scale_xy is None:
        raise ValueError("targets.masks: missing. The refiner is trained on whole masks.")
    side, device = config.train_px, images.device
    image, slot, seed, weights = _draw_objects(targets, count=config.crops_per_image)
    if masks.shape[1] == 0:  # a batch without objects is a valid step
        masks, scale_xy = images.new_zeros(len(images), 1, 1, 1), images.new_ones(len(images), 1, 2)
    crops = _draw_crops(targets, image, slot, seed=seed, config=config)
    at_masks = crops * scale_xy[image, slot].repeat(1, 2)
    # Only the drawn masks become floats: an image may have a hundred.
    planes, row = masks[image, slot, None].float(), torch.arange(len(slot), device=device)
    truth = crop(planes, at_masks, row, side=side)[:, 0]
    union = masks.amax(1, keepdim=True).float()
    others = crop(union, at_masks, image, side=side)[:, 0]
    whole = (truth >= 0.5).float()
    neighbors = ((others >= 0.5).float() - whole).clamp(min=0)
    return TrainingCrops(
        pixels=crop(images.float(), crops, image, side=side),
        truth=truth,
        given=damage_masks(whole, neighbors, seed=seed),
        weights=weights.to(device),
    )


def _draw_objects(targets: Targets, *, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw `count` objects of each image, each once before any comes again.

    Returns:
        image, slot, seed and weight of each crop, (N * count,).
    """
    valid = targets.valid
    if not valid.shape[1]:
        valid = valid.new_zeros(len(valid), 1)
    slots = valid.shape[1]
    candidate = torch.arange(count * slots, device=valid.device)
    keys = draw_keys(targets.sample_seed, candidate, purpose=CROPS) >> 8
    keys = keys + (count - candidate // slots) * 2**55
    keys = torch.where(valid.repeat(1, count), keys, -1)
    best = keys.topk(count, dim=1)
    image = torch.arange(len(valid), device=valid.device).repeat_interleave(count)
    seed = draw_keys(targets.sample_seed, best.indices, purpose=CROPS)
    weights = (best.values >= 0).flatten().float()
    return image, best.indices.flatten() % slots, seed.flatten(), weights


def _draw_crops(
    targets: Targets, image: Tensor, slot: Tensor, *, seed: Tensor, config: RefinerConfig
) -> Tensor:
    """Draw (R, 4) crops: jittered boxes of objects, or windows on the outline of large ones."""
    if targets.valid.shape[1] == 0:
        return image.new_tensor([0.0, 0.0, 32.0, 32.0], dtype=torch.float32).expand(len(image), 4)
    boxes = targets.boxes_xyxy[image, slot]
    draws = draw_uniforms(seed, torch.arange(8, device=seed.device), purpose=CROPS)
    extent = boxes[:, 2:] - boxes[:, :2]
    shift = (draws[:, 0:4] - 0.5) * 0.16 * extent.repeat(1, 2)
    scale = config.context * (0.85 + 0.5 * draws[:, 4:5])
    whole = boxes_to_crops(boxes + shift, scale=1.0)
    center, half = (whole[:, :2] + whole[:, 2:]) / 2, (whole[:, 2:] - whole[:, :2]) / 2 * scale
    # A window shows the photo at up to 1.5 times its size, and less of it than the whole crop.
    window = config.train_px / 2 / (0.4 + 1.1 * draws[:, 5:6])
    is_window = (window < half) & (draws[:, 6:7] < config.window_share)
    on_outline = _draw_on_outline(
        targets.squeeze_field[image, slot], targets.field_frame_xyxy[image, slot], seed=seed
    )
    center, half = torch.where(is_window, on_outline, center), torch.where(is_window, window, half)
    return torch.cat([center - half, center + half], dim=1)


def _draw_on_outline(field: Tensor, frame_xyxy: Tensor, *, seed: Tensor) -> Tensor:
    """Draw a cell on each object's outline, as (R, 2) pixels."""
    side = field.shape[-1]
    cells = torch.arange(side * side, device=field.device)
    keys = draw_keys(seed, cells, purpose=WINDOWS)
    drawn = torch.where(field.flatten(1) == 1, keys, -1).argmax(dim=1)
    at = torch.stack([drawn % side, drawn // side], dim=1) + 0.5
    return frame_xyxy[:, :2] + at / side * (frame_xyxy[:, 2:] - frame_xyxy[:, :2])
