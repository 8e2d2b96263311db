"""The four losses of the mask head: cross-entropy and Dice, on the mask and on the squeeze's bands.

Every loss is a mean over real RoIs. A batch has a fixed number of RoI slots, so each loss takes a
weight for every slot: 1 for a real RoI, 0 for an empty one. Without any real RoI a loss is exactly
0, and its gradient too, so that a batch without objects is a step like any other.

    R rois, M side of a mask.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bsm.config import LossWeights
from bsm.field import MaskTargets

_DICE_SMOOTH = 1.0  # in numerator and denominator (released code)


class SqueezeLogits(NamedTuple):
    """What the four predictors say of R rois, each (R, M, M), of the roi's own category."""

    mask: Tensor
    boundary: Tensor
    contraction: Tensor
    expansion: Tensor


def bce_loss(
    logits: Float[Tensor, "R M M"],
    targets: Float[Tensor, "R M M"],
    *,
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, ""]:
    """Average the binary cross-entropy over the cells of real rois.

    Args:
        logits: before the sigmoid.
        targets: 0/1.
        weights: 1 for a real roi, 0 for an empty slot; without them every roi is real.
    """
    cells = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    # A sum and a division, not a mean: the mean of no cells is no number.
    return _mean_of_rois(cells.flatten(1).sum(1) / _cells_of(logits), weights)


def dice_loss(
    logits: Float[Tensor, "R M M"],
    targets: Float[Tensor, "R M M"],
    *,
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, ""]:
    """Average over real rois 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), p = sigmoid(logits).

    Unlike cross-entropy it does not drown a band one or two cells wide in its background.

    Args:
        logits: before the sigmoid.
        targets: 0/1.
        weights: 1 for a real roi, 0 for an empty slot; without them every roi is real.
    """
    probs, wanted = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    shared, total = (probs * wanted).sum(1), probs.sum(1) + wanted.sum(1)
    return _mean_of_rois(1 - (2 * shared + _DICE_SMOOTH) / (total + _DICE_SMOOTH), weights)


def squeeze_losses(
    logits: SqueezeLogits,
    targets: MaskTargets,
    *,
    weights: Float[Tensor, " R"] | None = None,
    loss_weights: LossWeights | None = None,
) -> dict[str, Tensor]:
    """Compare the four predictions with the four targets (eq. 5).

    Cross-entropy for the mask, cross-entropy and Dice for the boundary, Dice for the contraction
    and expansion bands (sec. 3.2).

    Args:
        logits: of the roi's own category.
        targets: from the squeeze field or from morphology.
        weights: 1 for a real roi, 0 for an empty slot; without them every roi is real.
        loss_weights: weights of the four in the sum; without them all are 1, as in the paper.

    Returns:
        the weighted losses by name: loss_mask, loss_boundary, loss_contraction, loss_expansion.
    """
    scale = loss_weights or LossWeights()
    mask = bce_loss(logits.mask, targets.mask, weights=weights)
    boundary = bce_loss(logits.boundary, targets.boundary, weights=weights)
    boundary = boundary + dice_loss(logits.boundary, targets.boundary, weights=weights)
    contraction = dice_loss(logits.contraction, targets.contraction, weights=weights)
    expansion = dice_loss(logits.expansion, targets.expansion, weights=weights)
    return {
        "loss_mask": mask * scale.mask,
        "loss_boundary": boundary * scale.boundary,
        "loss_contraction": contraction * scale.contraction,
        "loss_expansion": expansion * scale.expansion,
    }


def _cells_of(logits: Tensor) -> int:
    return max(logits.shape[-2] * logits.shape[-1], 1)


def _mean_of_rois(losses: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        weights = torch.ones_like(losses)
    # No host sync for "are there any": the sum of nothing is 0, divided by 1.
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)
