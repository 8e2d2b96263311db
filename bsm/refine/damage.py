"""Damage true masks as detectors, annotators and tools do, for training.

Every damage is drawn from the crop's own seed and computed for all crops at once, so a batch costs
the same on every device and a resumed run sees the same masks.

R crops, S side of a crop
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bsm.refine.outline import clipped_distance
from bsm.sampling import draw_uniforms

DAMAGE = 4
"""Purpose of a draw: how a mask is damaged."""

_GRIDS = (10, 16, 24, 36, 56)
_NOISE = (3, 6, 12, 24)


def damage_masks(
    masks: Float[Tensor, "R S S"],
    neighbors: Float[Tensor, "R S S"],
    *,
    seed: Tensor,
) -> Float[Tensor, "R S S"]:
    """Damage masks: 0/1 in, 0/1 out; a mask that would vanish stays as it is.

    Args:
        masks: true masks.
        neighbors: 1 where other objects are.
        seed: (R,) int64, one for each crop.
    """
    side = masks.shape[-1]
    draw = _Draws(seed, device=masks.device)
    # Of the object, in cells: damage grows with it.
    size = (masks.flatten(1).mean(1).sqrt() * side)[:, None, None]
    reach = max(side // 5, 2)
    s = clipped_distance(masks > 0.5, reach=reach)
    # The outline moves: as a whole, and by smooth noise of several wave lengths.
    s = s + size * 0.06 * (2 * draw(1) - 1) * (draw(1) < 0.6)
    noises = [draw.noise(grid, side) for grid in _NOISE]
    for noise, amount in zip(noises, (0.09, 0.08, 0.05, 0.02), strict=True):
        s = s + size * amount * noise * draw(1).square()
    damaged = s > 0
    # Wrong pieces, and parts of neighbors.
    blob = draw.noise(8, side)
    damaged = damaged ^ ((blob > 1.3) & (s.abs() < 0.25 * size) & (draw(1) < 0.2))
    part = draw.noise(4, side) > 0.5
    damaged = damaged | ((neighbors > 0.5) & part & (draw(1) < 0.35))
    # Low resolution: a grid of cells, bilinear in between.
    coarse = damaged.float()[:, None]
    pick = (draw(1) * (len(_GRIDS) + 2)).long()
    result = coarse
    for index, grid in enumerate(_GRIDS):
        if grid >= side:
            continue
        small = F.interpolate(coarse, (grid, grid), mode="bilinear", antialias=True)
        large = F.interpolate(small, (side, side), mode="bilinear", align_corners=False)
        result = torch.where((pick == index)[:, None], large, result)
    result = (result[:, 0] >= 0.5).float()
    kept = result.flatten(1).amax(1) > 0
    return torch.where(kept[:, None, None], result, masks)


class _Draws:
    """Successive draws of all crops; each call takes the next numbers of the crop's seed."""

    def __init__(self, seed: Tensor, *, device: torch.device) -> None:
        self._seed, self._device, self._next = seed.to(device), device, 0

    def __call__(self, count: int) -> Tensor:
        """Draw (R, count, 1) uniform numbers."""
        index = torch.arange(self._next, self._next + count, device=self._device)
        self._next += count
        return draw_uniforms(self._seed, index, purpose=DAMAGE)[..., None]

    def noise(self, grid: int, side: int) -> Tensor:
        """Draw smooth noise (R, S, S) of about unit deviation, with `grid` waves across a crop."""
        cells = self(grid * grid).view(-1, 1, grid, grid)
        smooth = F.interpolate(cells, (side, side), mode="bicubic", align_corners=False)
        return (smooth[:, 0] - 0.5) * 4.5
