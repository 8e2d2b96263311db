"""The region proposal network: anchors, their losses, and the boxes that it proposes.

Anchors whose cell is in the padding of a batch have no loss and no proposals, so training on an
image does not depend on the sizes of the other images in its batch. (In detectron2 it depends a
little, and here with the "torchvision" box convention.)

N images, A anchors of all levels, T target slots, S sampled anchors, L levels, P proposals
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsm.configs.instance import BoxConvention, MaskRCNNConfig, ProposalConfig
from bsm.exporting import is_exporting
from bsm.instance.box_ops import clip_boxes, decode_boxes, encode_boxes, has_area, pairwise_iou
from bsm.instance.nms import keep_after_nms
from bsm.instance.tensors import Targets
from bsm.sampling import ANCHORS, draw_keys, subsample

STRIDES = (4, 8, 16, 32, 64)
"""Of P2 to P6."""
_CODE_WEIGHTS = (1.0, 1.0)
"""detectron2's RPN.BBOX_REG_WEIGHTS, center and size."""
_MIN_SIDE_PX: dict[BoxConvention, float] = {"detectron2": 0.0, "torchvision": 1e-3}
"""Thinner proposals are dropped."""


class Anchors(NamedTuple):
    """All anchors of a batch, level by level, row by row."""

    boxes_xyxy: Tensor
    """(A, 4)."""
    identity: Tensor
    """(A,) int64: number of an anchor by level and cell, independent of padding."""
    inside: Tensor
    """(N, A) bool: the anchor's cell is in the image, not in the padding."""
    level_sizes: tuple[int, ...]
    """Anchors of each level."""


class Proposals(NamedTuple):
    """Proposed boxes, best first, clipped to their images."""

    boxes_xyxy: Tensor
    """(N, P, 4)."""
    valid: Tensor
    """(N, P) bool."""
    identity: Tensor
    """(N, P) int64: identity of the anchor that each came from."""


def make_anchors(
    features: Sequence[Tensor],
    image_sizes_hw: Tensor,
    *,
    config: ProposalConfig,
    box_convention: BoxConvention = "detectron2",
) -> Anchors:
    """Make the anchors of every cell of every level, on the device of the features."""
    boxes, indices, insides = [], [], []
    padded_hw = [side * STRIDES[0] for side in features[0].shape[-2:]]
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        rows, columns = (torch.arange(s, device=feature.device) for s in feature.shape[-2:])
        shapes = config.anchor_shapes(level=level, box_convention=box_convention)
        steps = [stride, stride]
        if box_convention == "torchvision":  # shorter than the stride where P5 has an odd side
            steps = [p // s for p, s in zip(padded_hw, feature.shape[-2:], strict=True)]
        centers = torch.meshgrid(rows * steps[0], columns * steps[1], indexing="ij")
        y, x = (center.float() for center in centers)
        cells = [
            torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=-1) for w, h in shapes
        ]
        boxes.append(torch.stack(cells, dim=2).view(-1, 4))
        # 3 bits of level, 12 of row and of column (16 k pixels), 4 of aspect ratio: below 2^31.
        cell = (level << 28) + (rows[:, None] << 16) + (columns[None, :] << 4)
        ratios = torch.arange(len(shapes), device=feature.device)
        indices.append((cell[..., None] + ratios).view(-1))
        in_rows = (rows * stride)[None, :] < image_sizes_hw[:, :1]
        in_columns = (columns * stride)[None, :] < image_sizes_hw[:, 1:]
        inside = in_rows[:, :, None] & in_columns[:, None, :]
        if box_convention == "torchvision":
            inside = torch.ones_like(inside)
        insides.append(inside.flatten(1).repeat_interleave(len(shapes), dim=1))
    return Anchors(
        torch.cat(boxes),
        torch.cat(indices),
        torch.cat(insides, dim=1),
        tuple(index.shape[0] for index in indices),
    )


@torch.no_grad()
def match_anchors(
    anchors: Anchors, targets: Targets, *, config: ProposalConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Match every anchor with its best target.

    An anchor is positive if its overlap is at least `iou_high`, or the largest that a target has
    with any anchor (detectron2's low quality matches).

    Returns:
        The best target (N, A) int64, and masks of the positive and of the negative anchors (N, A).
    """
    iou = pairwise_iou(targets.boxes_xyxy, anchors.boxes_xyxy)
    iou.masked_fill_(~(targets.valid[:, :, None] & anchors.inside[:, None, :]), -1.0)
    best, matched = iou.max(dim=1)
    best_of_target = iou.amax(dim=2, keepdim=True)
    low_quality = ((iou == best_of_target) & (best_of_target > 0)).any(dim=1)
    positive = (best >= config.iou_high) | low_quality
    negative = (best < config.iou_low) & ~positive & anchors.inside
    return matched, positive, negative


class ProposalNetwork(nn.Module):
    """One small head on all levels: an objectness and a box regression for each anchor."""

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config, self.box_convention = config.proposals, config.box_convention
        channels, num_anchors = config.backbone.fpn_channels, len(config.proposals.aspect_ratios)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.more_convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(self.config.num_convs - 1)
        )
        self.objectness = nn.Conv2d(channels, num_anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * num_anchors, 1)
        for layer in (self.conv, *self.more_convs, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)  # detectron2 StandardRPNHead
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Score and regress every anchor.

        Returns:
            Objectness logits (N, A) and box regressions (N, A, 4), float32, in the order of the
            anchors.
        """
        logits, deltas = [], []
        for feature in features:
            hidden = F.relu(self.conv(feature))
            for conv in self.more_convs:
                hidden = F.relu(conv(hidden))
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(feature), -1, 4))
        return torch.cat(logits, dim=1).float(), torch.cat(deltas, dim=1).float()

    def losses(
        self, logits: Tensor, deltas: Tensor, anchors: Anchors, targets: Targets
    ) -> dict[str, Tensor]:
        """Compute objectness cross-entropy and L1 of the regression on the sampled anchors.

        Both are sums divided by samples_per_image * N, as in detectron2, even if fewer are sampled.
        """
        config = self.config
        num_slots = min(config.samples_per_image, logits.shape[1])
        max_positive = min(
            max(1, int(config.samples_per_image * config.positive_fraction)), num_slots
        )
        matched, positive, negative = match_anchors(anchors, targets, config=config)
        keys = draw_keys(targets.sample_seed, anchors.identity, purpose=ANCHORS)
        slots = subsample(positive, negative, keys, num_slots=num_slots, max_positive=max_positive)
        normalizer = config.samples_per_image * len(logits)
        objectness = F.binary_cross_entropy_with_logits(
            logits.gather(1, slots.candidate),
            slots.positive.to(logits.dtype),
            weight=slots.valid.to(logits.dtype),
            reduction="sum",
        )
        index, real = slots.candidate[:, :max_positive], slots.positive[:, :max_positive]
        slot = matched.gather(1, index)[..., None].expand(-1, -1, 4)
        code = encode_boxes(
            anchors.boxes_xyxy[index], targets.boxes_xyxy.gather(1, slot), weights=_CODE_WEIGHTS
        )
        error = (deltas.gather(1, index[..., None].expand(-1, -1, 4)) - code).abs().sum(-1)
        return {
            "loss_objectness": objectness / normalizer,
            "loss_proposal_box": (error * real).sum() / normalizer,
        }

    @torch.no_grad()
    def propose(
        self, logits: Tensor, deltas: Tensor, anchors: Anchors, image_sizes_hw: Tensor
    ) -> Proposals:
        """Select the best boxes of each level, apply NMS, then select the best of all levels."""
        config, n = self.config, len(logits)
        top_k = config.top_k_before_nms_train if self.training else config.top_k_before_nms_test
        width = top_k if is_exporting() else min(top_k, max(anchors.level_sizes))
        boxes, scores, identities = [], [], []
        start = 0
        for size in anchors.level_sizes:
            level = slice(start, start + size)
            start += size
            level_logits = logits[:, level].masked_fill(~anchors.inside[:, level], -torch.inf)
            best, index = _select_best(level_logits, top_k)
            chosen = deltas[:, level].gather(1, index[..., None].expand(-1, -1, 4))
            decoded = decode_boxes(chosen, anchors.boxes_xyxy[level][index], weights=_CODE_WEIGHTS)
            missing = width - index.shape[1]
            boxes.append(F.pad(clip_boxes(decoded, image_sizes_hw), (0, 0, 0, missing)))
            scores.append(F.pad(best, (0, missing), value=-torch.inf))
            identities.append(F.pad(anchors.identity[level][index], (0, missing)))
        boxes_LK, scores_LK = torch.stack(boxes, dim=1), torch.stack(scores, dim=1)
        large = has_area(boxes_LK, min_side_px=_MIN_SIDE_PX[self.box_convention])
        valid = (scores_LK > -torch.inf) & large
        keep = keep_after_nms(
            boxes_LK.flatten(0, 1), valid.flatten(0, 1), iou_threshold=config.nms_iou
        ).view(n, -1)
        final = scores_LK.view(n, -1).masked_fill(~keep, -torch.inf)
        best, index = final.topk(min(config.top_k_after_nms, final.shape[1]), dim=1)
        chosen = boxes_LK.view(n, -1, 4).gather(1, index[..., None].expand(-1, -1, 4))
        identity = torch.cat(identities, dim=1).gather(1, index)
        return Proposals(chosen, best > -torch.inf, identity)


def _select_best(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Select the best logits (N, P) of a level and their indices; P is at most its size.

    In an exported graph P is `top_k`, whatever the size of the image, and a missing one is -inf.
    """
    size = logits.shape[1]
    if not is_exporting():
        best, index = logits.topk(min(top_k, size), dim=1)
        return best, index
    best, index = F.pad(logits, (0, top_k), value=-torch.inf).topk(top_k, dim=1)
    return best, index.clamp(max=size - 1)
