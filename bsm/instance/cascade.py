"""Cascade R-CNN (Cai and Vasconcelos 2018): three box heads, each fed the boxes of the one before.

Each stage asks for more overlap and refines its boxes more finely. Constants are detectron2's
(configs/Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml).

    N images, S RoI slots, P proposals, K categories
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bsm.configs.instance import CASCADE_WEIGHTS, BoxConvention, BoxHeadConfig
from bsm.instance.box_ops import clip_boxes, decode_boxes
from bsm.instance.boxes import BoxHead, box_losses, detect_boxes
from bsm.instance.proposals import Proposals
from bsm.instance.roi import SampledRois, pool_rois, rematch_rois, rois_of_slots, used_slots
from bsm.instance.tensors import Detections, Targets


class CascadeBoxHead(nn.Module):
    """Three box heads with one regression each for all categories."""

    def __init__(
        self,
        channels: int,
        *,
        num_classes: int,
        config: BoxHeadConfig,
        box_convention: BoxConvention = "detectron2",
    ) -> None:
        super().__init__()
        self.config, self.box_convention = config, box_convention
        self.num_classes = num_classes
        self.stages = nn.ModuleList(
            BoxHead(channels, num_classes=num_classes, config=config, is_agnostic=True)
            for _ in CASCADE_WEIGHTS
        )

    def losses(
        self,
        pyramid: Sequence[Tensor],
        rois: SampledRois,
        targets: Targets,
        image_sizes_hw: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The losses of all stages by name, and the boxes (N, S, 4) that leave the last one.

        From the second stage on nothing is sampled anew: boxes that lost their area are left out,
        the others are matched again at the stage's overlap.
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
            used = used_slots(rois.valid)
            logits, deltas = self._of_slots(head, pyramid, boxes, used)
            of_stage = box_losses(
                logits,
                deltas,
                rois=rois,
                target_boxes_xyxy=targets.boxes_xyxy,
                used=used,
                weights=weights,
            )
            losses |= {f"{name}_stage{stage + 1}": loss for name, loss in of_stage.items()}
            flat = boxes.flatten(0, 1)
            refined = decode_boxes(deltas[:, 0].detach(), flat[used], weights=weights)
            boxes = clip_boxes(flat.index_copy(0, used, refined).view_as(boxes), image_sizes_hw)
        return losses, boxes

    def detect(
        self, pyramid: Sequence[Tensor], proposals: Proposals, image_sizes_hw: Tensor
    ) -> Detections:
        """The best boxes of the last stage, scored by the mean of all stages, without masks."""
        n, num_proposals = proposals.valid.shape
        every = torch.arange(n * num_proposals, device=proposals.valid.device)
        boxes, probs = proposals.boxes_xyxy, []
        for stage, (head, weights) in enumerate(zip(self.stages, CASCADE_WEIGHTS, strict=True)):
            if stage > 0:
                boxes = clip_boxes(boxes, image_sizes_hw)
            logits, deltas = self._of_slots(head, pyramid, boxes, every)
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

    def _of_slots(
        self, head: nn.Module, pyramid: Sequence[Tensor], boxes_xyxy: Tensor, used: Tensor
    ) -> tuple[Tensor, Tensor]:
        rois = rois_of_slots(boxes_xyxy, used)
        side = self.config.roi_side
        pooled = pool_rois(pyramid, rois, side=side, box_convention=self.box_convention)
        # All stages train the same pyramid: each with its share of the gradient.
        value = pooled.detach()
        logits, deltas = head(value + (pooled - value) / len(self.stages))
        return logits, deltas
