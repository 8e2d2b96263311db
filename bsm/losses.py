"""Losses of mask heads: cross-entropy and Dice, on the mask and on the squeeze's bands.

Every loss is a mean over real RoIs. A batch has a fixed number of RoI slots, so each loss takes a
weight for every slot: 1 for a real RoI, 0 for an empty slot. Without any real RoI the loss and its
gradient are exactly 0, so a batch without objects is a valid step.

R rois, H, W sides of a mask or of any other grid, M side of a square one
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from bsm.configs.shared import BandLoss, LossWeights
from bsm.field import MaskTargets

DICE_SMOOTH = 1.0  # in numerator and denominator (released code)

_MAX_WEIGHT = 20.0
"""Cap on the weight of a band's cells in weighted cross-entropy: a single cell would weigh 783."""


class SqueezeLogits(NamedTuple):
    """Logits of R rois, each (R, M, M), for the roi's own category.

    None where a branch is left out, or where the model computes its mask loss itself.
    """

    mask: Tensor | None
    boundary: Tensor | None
    contraction: Tensor | None
    expansion: Tensor | None


def bce_loss(
    logits: Float[Tensor, "R H W"],
    targets: Float[Tensor, "R H W"],
    *,
    weights: Float[Tensor, " R"] | None = None,
    band_weights: Float[Tensor, " R"] | None = None,
    cells: Bool[Tensor, "R H W"] | None = None,
) -> Float[Tensor, ""]:
    """Average the binary cross-entropy over the cells of real rois.

    Args:
        logits: before the sigmoid.
        targets: 0/1.
        weights: 1 for a real roi, 0 for an empty slot; by default every roi is real.
        band_weights: weights of the target's cells in each roi; by default 1.
        cells: cells to average over in each roi; by default all.
    """
    entropy = F.binary_cross_entropy_with_logits(
        logits.float(),
        targets.float(),
        reduction="none",
        pos_weight=None if band_weights is None else band_weights[:, None, None],
    )
    # A sum and a division, not a mean: the mean over no cells is NaN.
    if cells is None:
        return _average_rois(entropy.flatten(1).sum(1) / _count_cells(logits), weights)
    inside = (entropy * cells).flatten(1).sum(1)
    return _average_rois(inside / cells.flatten(1).sum(1).clamp(min=1), weights)


def weighted_bce_loss(
    logits: Float[Tensor, "R H W"],
    targets: Float[Tensor, "R H W"],
    *,
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, ""]:
    """Average the cross-entropy with a band's cells weighted as much as those outside of it.

    Neither the paper nor its code says how it weights (Table 1b). Here each cell of a band has the
    weight (cells outside) / (cells inside), per roi, at most 20.

    Args:
        logits: before the sigmoid.
        targets: 0/1.
        weights: 1 for a real roi, 0 for an empty slot; by default every roi is real.
    """
    inside = targets.float().flatten(1).sum(1)
    ratio = (_count_cells(logits) - inside) / inside.clamp(min=1.0)
    band_weights = ratio.clamp(min=1.0, max=_MAX_WEIGHT)
    return bce_loss(logits, targets, weights=weights, band_weights=band_weights)


def dice_loss(
    logits: Float[Tensor, "R H W"],
    targets: Float[Tensor, "R H W"],
    *,
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, ""]:
    """Average over real rois 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), p = sigmoid(logits).

    Unlike cross-entropy, it does not drown a band of one or two cells in the background.

    Args:
        logits: before the sigmoid.
        targets: 0/1.
        weights: 1 for a real roi, 0 for an empty slot; by default every roi is real.
    """
    probs, wanted = logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    shared, total = (probs * wanted).sum(1), probs.sum(1) + wanted.sum(1)
    return _average_rois(1 - (2 * shared + DICE_SMOOTH) / (total + DICE_SMOOTH), weights)


def band_loss(
    logits: Float[Tensor, "R H W"],
    targets: Float[Tensor, "R H W"],
    *,
    kind: BandLoss,
    weights: Float[Tensor, " R"] | None = None,
) -> Float[Tensor, ""]:
    """Compute one of the band losses of Table 1b.

    Args:
        logits: before the sigmoid.
        targets: 0/1.
        kind: cross-entropy, weighted or not, Dice, or a sum of two.
        weights: 1 for a real roi, 0 for an empty slot; by default every roi is real.
    """
    match kind:
        case "bce":
            return bce_loss(logits, targets, weights=weights)
        case "weighted_bce":
            return weighted_bce_loss(logits, targets, weights=weights)
        case "dice":
            return dice_loss(logits, targets, weights=weights)
        case "bce_dice":
            entropy = bce_loss(logits, targets, weights=weights)
        case "weighted_bce_dice":
            entropy = weighted_bce_loss(logits, targets, weights=weights)
    return entropy + dice_loss(logits, targets, weights=weights)


def squeeze_losses(
    logits: SqueezeLogits,
    targets: MaskTargets,
    *,
    weights: Float[Tensor, " R"] | None = None,
    loss_weights: LossWeights | None = None,
    band: BandLoss = "dice",
) -> dict[str, Tensor]:
    """Compute the losses of all branches (eq. 5).

    Cross-entropy for the mask, cross-entropy and Dice for the boundary, Dice for the contraction
    and expansion bands (sec. 3.2).

    Args:
        logits: of the roi's own category.
        targets: from the squeeze field or from morphology.
        weights: 1 for a real roi, 0 for an empty slot; by default every roi is real.
        loss_weights: weights of the four in the sum; by default all are 1, as in the paper.
        band: loss of the contraction and expansion bands (Table 1b).

    Returns:
        the weighted losses by name: loss_mask, loss_boundary, loss_contraction, loss_expansion,
        except for branches that are left out.
    """
    scale = loss_weights or LossWeights()
    kinds: dict[str, BandLoss] = {
        "mask": "bce",
        "boundary": "bce_dice",
        "contraction": band,
        "expansion": band,
    }
    losses = {}
    for name, kind in kinds.items():
        predicted, wanted = getattr(logits, name), getattr(targets, name)
        if predicted is not None:
            loss = band_loss(predicted, wanted, kind=kind, weights=weights)
            losses[f"loss_{name}"] = loss * getattr(scale, name)
    return losses


def _count_cells(logits: Tensor) -> int:
    return max(logits.shape[-2] * logits.shape[-1], 1)


def _average_rois(losses: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        weights = torch.ones_like(losses)
    # No host sync to test for real rois: without any, 0 is divided by 1.
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)
