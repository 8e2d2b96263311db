"""The box head: classify each RoI and refine its box.

N images, S RoI slots, P proposals, R RoIs of all images, K categories, D detection slots
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsm.configs.instance import BoxConvention, BoxHeadConfig, MaskRCNNConfig
from bsm.instance.box_ops import clip_boxes, decode_boxes, encode_boxes, has_area
from bsm.instance.convolutions import build_conv_relu
from bsm.instance.nms import keep_after_nms
from bsm.instance.proposals import Proposals
from bsm.instance.roi import SampledRois, find_used_slots, gather_rois, pool_rois
from bsm.instance.tensors import Detections, Targets

CODE_WEIGHTS = (10.0, 5.0)
"""detectron2's ROI_BOX_HEAD.BBOX_REG_WEIGHTS, center and size."""
_MIN_SIDE_PX: dict[BoxConvention, float] = {"detectron2": 0.0, "torchvision": 1e-2}
"""Thinner detections are dropped."""
_MAX_CANDIDATES = 2000
"""Best (RoI, category) pairs above the score threshold that go into NMS. detectron2 takes all; a
trained model has a few hundred, so this bounds the memory without changing the result."""


class BoxHead(nn.Module):
    """Fully connected layers, then a score and a box regression for each category.

    Convolutions may precede them, as in torchvision's V2. The background is the last of the K + 1
    scores; it has no regression. A stage of a cascade has one regression for all categories.
    """

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config, self.box_convention = config.box_head, config.box_convention
        hidden, num_classes = config.box_head.hidden, config.num_classes
        self.num_regressions = 1 if config.box_head.kind == "cascade" else num_classes
        channels = config.backbone.fpn_channels
        self.convs = nn.Sequential()
        for _ in range(config.box_head.num_convs):
            self.convs.extend(build_conv_relu(channels, channels, 3, norm=config.head_norm))
        self.fc1 = nn.Linear(channels * config.box_head.roi_side**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden) if config.box_head.num_fcs == 2 else None
        self.scores = nn.Linear(hidden, num_classes + 1)
        self.deltas = nn.Linear(hidden, 4 * self.num_regressions)
        fcs = [self.fc1] if self.fc2 is None else [self.fc1, self.fc2]
        for layer in fcs:
            nn.init.kaiming_uniform_(layer.weight, a=1)  # detectron2: c2_xavier_fill
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (*fcs, self.scores, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Score and regress pooled RoIs (R, D, side, side).

        Returns:
            Logits (R, K + 1) and regressions (R, K, 4), or (R, 1, 4) for all, float32.
        """
        hidden = F.relu(self.fc1(self.convs(pooled).flatten(1)))
        if self.fc2 is not None:
            hidden = F.relu(self.fc2(hidden))
        deltas = self.deltas(hidden).float().view(-1, self.num_regressions, 4)
        return self.scores(hidden).float(), deltas

    def losses(
        self,
        pyramid: Sequence[Tensor],
        rois: SampledRois,
        targets: Targets,
        image_sizes_hw: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of sampled RoIs and their refined boxes (N, S, 4).

        The regression is that of the target's category; empty and background slots hold any box.
        """
        used = find_used_slots(rois.valid)
        logits, deltas = self._predict(pyramid, rois.boxes_xyxy, used)
        losses = box_losses(
            logits, deltas, rois=rois, target_boxes_xyxy=targets.boxes_xyxy, used=used
        )
        own = select_regression(deltas, rois.category_index.flatten()[used])
        return losses, refine_boxes(rois.boxes_xyxy, own, used=used, weights=CODE_WEIGHTS)

    def detect(
        self, pyramid: Sequence[Tensor], proposals: Proposals, image_sizes_hw: Tensor
    ) -> Detections:
        """Detect objects in N images, without masks."""
        every = torch.arange(proposals.valid.numel(), device=proposals.valid.device)
        logits, deltas = self._predict(pyramid, proposals.boxes_xyxy, every)
        n, num_proposals = proposals.valid.shape
        deltas = deltas.view(n, num_proposals, -1, 4)
        boxes = decode_boxes(deltas, proposals.boxes_xyxy[:, :, None], weights=CODE_WEIGHTS)
        return detect_boxes(
            logits.softmax(-1).view(n, num_proposals, -1)[..., :-1],
            boxes,
            valid=proposals.valid,
            image_sizes_hw=image_sizes_hw,
            config=self.config,
            box_convention=self.box_convention,
        )

    def _predict(
        self, pyramid: Sequence[Tensor], boxes_xyxy: Tensor, used: Tensor
    ) -> tuple[Tensor, Tensor]:
        rois = gather_rois(boxes_xyxy, used)
        side = self.config.roi_side
        logits, deltas = self(
            pool_rois(pyramid, rois, side=side, box_convention=self.box_convention)
        )
        return logits, deltas


def select_regression(deltas: Tensor, category_index: Tensor) -> Tensor:
    """Select from regressions (R, K or 1, 4) the one (R, 4) of each RoI's category (R,).

    Background, which has none, gets that of the last category.
    """
    own = category_index.clamp(max=deltas.shape[1] - 1)[:, None, None].expand(-1, 1, 4)
    return deltas.gather(1, own).squeeze(1)


def refine_boxes(
    boxes_xyxy: Tensor, deltas: Tensor, *, used: Tensor, weights: tuple[float, float]
) -> Tensor:
    """Apply regressions (R, 4) to the used slots (R,) of boxes (N, S, 4), without a gradient."""
    boxes = boxes_xyxy.flatten(0, 1)
    refined = decode_boxes(deltas.detach(), boxes[used], weights=weights)
    return boxes.index_copy(0, used, refined).view_as(boxes_xyxy)


def box_losses(
    logits: Tensor,
    deltas: Tensor,
    *,
    rois: SampledRois,
    target_boxes_xyxy: Tensor,
    used: Tensor,
    weights: tuple[float, float] = CODE_WEIGHTS,
) -> dict[str, Tensor]:
    """Compute category cross-entropy and regression L1, both divided by the number of RoIs.

    Args:
        logits: (R, K + 1).
        deltas: (R, K, 4), or (R, 1, 4) for all categories.
        rois: the sampled RoIs.
        target_boxes_xyxy: (N, T, 4).
        used: (R,) flat indices of the slots of `rois` that `logits` belong to.
        weights: of the regression's center and size.
    """
    slot = rois.target_slot[..., None].expand(-1, -1, 4)
    matched = target_boxes_xyxy.gather(1, slot).flatten(0, 1)[used]
    category = rois.category_index.flatten()[used]
    code = encode_boxes(rois.boxes_xyxy.flatten(0, 1)[used], matched, weights=weights)
    error = (select_regression(deltas, category) - code).abs().sum(1)
    num_rois = rois.valid.sum().clamp(min=1)
    entropy = F.cross_entropy(logits, category, reduction="none")
    return {
        "loss_class": (entropy * rois.valid.flatten()[used]).sum() / num_rois,
        "loss_box": (error * rois.foreground.flatten()[used]).sum() / num_rois,
    }


@torch.no_grad()
def detect_boxes(
    probs: Tensor,
    boxes_xyxy: Tensor,
    *,
    valid: Tensor,
    image_sizes_hw: Tensor,
    config: BoxHeadConfig,
    box_convention: BoxConvention = "detectron2",
) -> Detections:
    """Select the best boxes of N images after NMS in each category, without masks.

    Args:
        probs: (N, P, K) scores, 0 to 1.
        boxes_xyxy: (N, P, K, 4), or (N, P, 1, 4) where all categories share a box.
        valid: (N, P) bool: whether the row holds a proposal.
        image_sizes_hw: (N, 2).
        config: thresholds and counts.
        box_convention: decides how thin a detection may be.
    """
    n, _, num_classes = probs.shape
    usable = (probs > config.score_threshold) & valid[:, :, None]
    scores = probs.masked_fill(~usable, 0.0).flatten(1)
    best, index = scores.topk(min(_MAX_CANDIDATES, scores.shape[1]), dim=1)
    category = index % num_classes
    of_box = index if boxes_xyxy.shape[2] == num_classes else index // num_classes
    chosen = boxes_xyxy.flatten(1, 2).gather(1, of_box[..., None].expand(-1, -1, 4))
    boxes = clip_boxes(chosen, image_sizes_hw)
    large = has_area(boxes, min_side_px=_MIN_SIDE_PX[box_convention])
    keep = keep_after_nms(
        boxes, (best > 0) & large, iou_threshold=config.nms_iou, category_index=category
    )
    missing = max(0, config.detections_per_image - keep.shape[1])
    best = F.pad(best.masked_fill(~keep, 0.0), (0, missing))
    best, order = best.topk(config.detections_per_image, dim=1)
    boxes = F.pad(boxes, (0, 0, 0, missing)).gather(1, order[..., None].expand(-1, -1, 4))
    category = F.pad(category, (0, missing)).gather(1, order)
    kept = best > 0
    return Detections(
        boxes.masked_fill(~kept[..., None], 0.0),
        best,
        category.masked_fill(~kept, 0),
        kept,
        boxes.new_zeros(n, config.detections_per_image, 0, 0),
    )
