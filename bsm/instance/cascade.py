"""Cascade R-CNN (Cai and Vasconcelos 2018): three box heads that refine boxes in turn.

Each stage requires more overlap than the one before and refines its boxes. Constants are
detectron2's (configs/Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml).

N images, S RoI slots, P proposals, K categories
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bsm.configs.instance import CASCADE_WEIGHTS, MaskRCNNConfig
from bsm.instance.box_ops import clip_boxes, decode_boxes
from bsm.instance.boxes import BoxHead, box_losses, detect_boxes, refine_boxes
from bsm.instance.proposals import Proposals
from bsm.instance.roi import SampledRois, find_used_slots, gather_rois, pool_rois, rematch_rois
from bsm.instance.tensors import Detections, Targets


class CascadeBoxHead(nn.Module):
    """Three box heads with one regression each for all categories."""

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config, self.box_convention = config.box_head, config.box_convention
        self.num_classes = config.num_classes
        self.stages = nn.ModuleList(BoxHead(config) for _ in CASCADE_WEIGHTS)

    def losses(
        self,
        pyramid: Sequence[Tensor],
        rois: SampledRois,
        targets: Targets,
        image_sizes_hw: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the losses of all stages by name, and the last stage's boxes (N, S, 4).

        The second and third stage do not sample again: boxes without area are dropped, the others
        are matched again at the stage's overlap.
        """
        losses: dict[str, Tensor] = {}
        boxes = rois.boxes_xyxy
        for stage, (head, weights) in enumerate(zip(self.stages, CASCADE_WEIGHTS, strict=True)):
            if stage > 0:
                rois = rematch_rois(
                    boxes,
                    rois.valid,
                    targets,
                    foreground_iou=self.config.cascade_ious[stage],
                    num_classes=self.num_classes,
                )
            used = find_used_slots(rois.valid)
            logits, deltas = self._predict(head, pyramid, boxes, used)
            stage_losses = box_losses(
                logits,
                deltas,
                rois=rois,
                target_boxes_xyxy=targets.boxes_xyxy,
                used=used,
                weights=weights,
            )
            losses |= {f"{name}_stage{stage + 1}": loss for name, loss in stage_losses.items()}
            boxes = refine_boxes(boxes, deltas[:, 0], used=used, weights=weights)
            boxes = clip_boxes(boxes, image_sizes_hw)
        return losses, boxes

    def detect(
        self, pyramid: Sequence[Tensor], proposals: Proposals, image_sizes_hw: Tensor
    ) -> Detections:
        """Detect objects in the last stage's boxes, scored by the mean of all stages."""
        n, num_proposals = proposals.valid.shape
        every = torch.arange(n * num_proposals, device=proposals.valid.device)
        boxes, probs = proposals.boxes_xyxy, []
        for stage, (head, weights) in enumerate(zip(self.stages, CASCADE_WEIGHTS, strict=True)):
            if stage > 0:
                boxes = clip_boxes(boxes, image_sizes_hw)
            logits, deltas = self._predict(head, pyramid, boxes, every)
            probs.append(logits.softmax(-1))
            boxes = decode_boxes(deltas.view(n, num_proposals, 4), boxes, weights=weights)
        mean = torch.stack(probs).mean(0).view(n, num_proposals, -1)
        return detect_boxes(
            mean[..., :-1],
            boxes[:, :, None],
            valid=proposals.valid,
            image_sizes_hw=image_sizes_hw,
            config=self.config,
            box_convention=self.box_convention,
        )

    def _predict(
        self, head: nn.Module, pyramid: Sequence[Tensor], boxes_xyxy: Tensor, used: Tensor
    ) -> tuple[Tensor, Tensor]:
        rois = gather_rois(boxes_xyxy, used)
        side = self.config.roi_side
        pooled = pool_rois(pyramid, rois, side=side, box_convention=self.box_convention)
        # All stages train the same pyramid, each with its share of the gradient.
        value = pooled.detach()
        logits, deltas = head(value + (pooled - value) / len(self.stages))
        return logits, deltas
