"""The box head: what is in a RoI, and where exactly.

N images, S RoI slots, R RoIs of all images, K categories, D detection slots
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsm.config import BoxHeadConfig, Geometry
from bsm.instance.geometry import clip_boxes, decode_boxes, encode_boxes, has_area
from bsm.instance.nms import keep_after_nms
from bsm.instance.proposals import Proposals
from bsm.instance.roi import SampledRois
from bsm.instance.tensors import Detections

CODE_WEIGHTS = (10.0, 5.0)
"""detectron2's ROI_BOX_HEAD.BBOX_REG_WEIGHTS, center and size."""
_MIN_SIDE_PX: dict[Geometry, float] = {"detectron2": 0.0, "torchvision": 1e-2}
"""Thinner detections are dropped."""
_MAX_CANDIDATES = 2000
"""(RoI, category) pairs above the score threshold that go into NMS, the best first. detectron2
takes all; on a trained model there are a few hundred, so this bounds the memory and changes
nothing."""


class BoxHead(nn.Module):
    """Two fully connected layers, then a score for each category and a box regression for each.

    The background is the last of the K + 1 scores; it has no regression.
    """

    def __init__(self, channels: int, *, num_classes: int, config: BoxHeadConfig) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc1 = nn.Linear(channels * config.roi_side**2, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.hidden)
        self.scores = nn.Linear(config.hidden, num_classes + 1)
        self.deltas = nn.Linear(config.hidden, 4 * num_classes)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # detectron2: c2_xavier_fill
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.fc1, self.fc2, self.scores, self.deltas):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Score and regress pooled RoIs (R, D, side, side).

        Returns:
            Logits (R, K + 1) and regressions (R, K, 4), float32.
        """
        hidden = F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))
        deltas = self.deltas(hidden).float().view(-1, self.num_classes, 4)
        return self.scores(hidden).float(), deltas


def box_losses(
    logits: Tensor, deltas: Tensor, *, rois: SampledRois, target_boxes_xyxy: Tensor, used: Tensor
) -> dict[str, Tensor]:
    """Cross-entropy of the category and L1 of the regression, both over the number of RoIs.

    Args:
        logits: (R, K + 1).
        deltas: (R, K, 4).
        rois: The sampled RoIs.
        target_boxes_xyxy: (N, T, 4).
        used: (R,) flat indices into the slots of `rois`: which of them `logits` belong to.
    """
    slot = rois.target_slot[..., None].expand(-1, -1, 4)
    matched = target_boxes_xyxy.gather(1, slot).flatten(0, 1)[used]
    category = rois.category_index.flatten()[used]
    code = encode_boxes(rois.boxes_xyxy.flatten(0, 1)[used], matched, weights=CODE_WEIGHTS)
    own = category.clamp(max=deltas.shape[1] - 1)[:, None, None].expand(-1, 1, 4)
    error = (deltas.gather(1, own).squeeze(1) - code).abs().sum(1)
    num_rois = rois.valid.sum().clamp(min=1)
    entropy = F.cross_entropy(logits, category, reduction="none")
    return {
        "loss_class": (entropy * rois.valid.flatten()[used]).sum() / num_rois,
        "loss_box": (error * rois.foreground.flatten()[used]).sum() / num_rois,
    }


@torch.no_grad()
def detect_boxes(
    logits: Tensor,
    deltas: Tensor,
    *,
    proposals: Proposals,
    image_sizes_hw: Tensor,
    config: BoxHeadConfig,
    geometry: Geometry = "detectron2",
) -> Detections:
    """The best boxes of N images after NMS in each category, without masks.

    Args:
        logits: (N * P, K + 1).
        deltas: (N * P, K, 4).
        proposals: What was pooled, (N, P).
        image_sizes_hw: (N, 2).
        config: Thresholds and counts.
        geometry: Says how thin a detection may be.
    """
    n, num_proposals = proposals.valid.shape
    num_classes = deltas.shape[1]
    probs = logits.softmax(-1)[:, :-1].view(n, num_proposals, num_classes)
    usable = (probs > config.score_threshold) & proposals.valid[:, :, None]
    scores = probs.masked_fill(~usable, 0.0).flatten(1)
    best, index = scores.topk(min(_MAX_CANDIDATES, scores.shape[1]), dim=1)
    of_roi = (index // num_classes)[..., None].expand(-1, -1, 4)
    chosen = deltas.view(n, -1, 4).gather(1, index[..., None].expand(-1, -1, 4))
    decoded = decode_boxes(chosen, proposals.boxes_xyxy.gather(1, of_roi), weights=CODE_WEIGHTS)
    boxes = clip_boxes(decoded, image_sizes_hw)
    category = index % num_classes
    large = has_area(boxes, min_side_px=_MIN_SIDE_PX[geometry])
    keep = keep_after_nms(
        boxes, (best > 0) & large, iou_threshold=config.nms_iou, category_index=category
    )
    lacking = max(0, config.detections_per_image - keep.shape[1])
    best = F.pad(best.masked_fill(~keep, 0.0), (0, lacking))
    best, order = best.topk(config.detections_per_image, dim=1)
    boxes = F.pad(boxes, (0, 0, 0, lacking)).gather(1, order[..., None].expand(-1, -1, 4))
    category = F.pad(category, (0, lacking)).gather(1, order)
    valid = best > 0
    return Detections(
        boxes.masked_fill(~valid[..., None], 0.0),
        best,
        category.masked_fill(~valid, 0),
        valid,
        boxes.new_zeros(n, config.detections_per_image, 0, 0),
    )
