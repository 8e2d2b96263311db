"""Losses of label maps: cross-entropy of the map, cross-entropy and Dice of each class's bands.

A pair of an image and a class in it corresponds to a RoI of an instance model (sec. 3.2): band
losses are means over these pairs. A class that is not in an image has nothing to squeeze, and its
Dice loss would be large for any prediction. Void pixels are in no sum. There is no host sync for
the number of pixels or pairs; without any, a loss is exactly 0.

The formulas are those of bsm/losses.py. They are rewritten for byte targets, because a map of
logits for 19 classes at 832 x 832 pixels takes 53 MB, and so does each intermediate that is kept
for the backward pass: here one in Dice and one in cross-entropy.

N images, K classes, H, W size of a label map
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from bsm.configs.semantic import CrossEntropyConfig
from bsm.losses import DICE_SMOOTH
from bsm.semantic.field import VOID, ClassTargets


def label_loss(
    logits: Float[Tensor, " N K *map"],
    label: UInt8[Tensor, " N *map"],
    *,
    config: CrossEntropyConfig,
) -> Float[Tensor, ""]:
    """Average the cross-entropy over the pixels that are not void, or over the hard ones of them.

    Args:
        logits: before the softmax.
        label: classes below K, and 255 for void.
        config: selects the pixels. Hard pixels are those whose own class has at most the
            threshold's probability, but never fewer than the `ohem_min_kept` hardest.
    """
    entropy = F.cross_entropy(logits, label.long(), ignore_index=VOID, reduction="none")
    counts = label != VOID
    if config.kind == "ohem":
        # Void has an entropy of 0, as an easy pixel may have, so it is moved below all others.
        hardness = torch.where(counts, entropy.detach(), -1.0).flatten()
        kept = min(config.ohem_min_kept, len(hardness))
        last_kept = hardness.topk(kept).values[-1]
        threshold = last_kept.clamp(max=-math.log(config.ohem_threshold))
        counts = counts & (hardness.view_as(entropy) >= threshold)
    total = torch.where(counts, entropy, 0.0).sum()
    return total / counts.sum().clamp(min=1)


def class_bce_loss(
    logits: Float[Tensor, "N K H W"], band: Bool[Tensor, "N K H W"], *, targets: ClassTargets
) -> Float[Tensor, ""]:
    """Average the binary cross-entropy over the valid pixels of each pair, then over the pairs.

    Args:
        logits: before the sigmoid.
        band: one of the targets' maps.
        targets: mark the valid pixels and the pairs that are present.
    """
    # -log of the right answer's probability: softplus(-x) in the band and softplus(x) outside.
    pixels = F.softplus(torch.where(band, -logits, logits))
    total = torch.where(targets.valid[:, None], pixels, 0.0).sum((2, 3))
    counts = targets.valid.sum((1, 2)).clamp(min=1)
    return _average_pairs(total / counts[:, None], targets.present)


def class_dice_loss(
    logits: Float[Tensor, "N K H W"], band: Bool[Tensor, "N K H W"], *, targets: ClassTargets
) -> Float[Tensor, ""]:
    """Average over the pairs 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), p = sigmoid(logits).

    Args:
        logits: before the sigmoid.
        band: one of the targets' maps.
        targets: mark the valid pixels and the pairs that are present.
    """
    probs = torch.where(targets.valid[:, None], logits, -math.inf).sigmoid()
    shared = torch.where(band, probs, 0.0).sum((2, 3))
    total = probs.sum((2, 3)) + band.sum((2, 3))
    loss = 1 - (2 * shared + DICE_SMOOTH) / (total + DICE_SMOOTH)
    return _average_pairs(loss, targets.present)


def _average_pairs(losses: Tensor, present: Tensor) -> Tensor:
    return torch.where(present, losses, 0.0).sum() / present.sum().clamp(min=1)
