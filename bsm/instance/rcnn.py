"""Mask R-CNN, assembled: backbone, proposals, box head, mask head.

N images, T target slots, S RoI slots, R RoIs, D detection slots, K categories, M side of a mask
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsm.backbone import Backbone
from bsm.config import MaskRCNNConfig
from bsm.field import MaskTargets, sample_field, targets_from_distance
from bsm.instance.boxes import BoxHead, box_losses, detect_boxes
from bsm.instance.mask_heads.plain import PlainMaskHead
from bsm.instance.mask_heads.squeeze import SqueezeMaskHead
from bsm.instance.proposals import Anchors, ProposalNetwork, Proposals, make_anchors
from bsm.instance.roi import (
    SampledRois,
    pool_finest,
    pool_rois,
    rois_of_slots,
    sample_rois,
    used_slots,
)
from bsm.instance.tensors import Detections, Targets
from bsm.losses import bce_loss, squeeze_losses
from bsm.morphology import crop_masks, targets_from_masks


class MaskRCNN(nn.Module):
    """Images in; losses out in training, detections out in inference."""

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config = config
        width, num_classes = config.backbone.fpn_channels, config.num_classes
        self.backbone = Backbone(config.backbone)
        self.proposals = ProposalNetwork(width, config=config.proposals, geometry=config.geometry)
        self.box_head = BoxHead(width, num_classes=num_classes, config=config.box_head)
        self.mask_head: PlainMaskHead | SqueezeMaskHead
        match config.mask_head.kind:
            case "plain":
                self.mask_head = PlainMaskHead(
                    width, num_classes=num_classes, config=config.mask_head
                )
            case "squeeze":
                self.mask_head = SqueezeMaskHead(
                    width, num_classes=num_classes, config=config.mask_head
                )

    def forward(
        self, images: Tensor, image_sizes_hw: Tensor, targets: Targets | None = None
    ) -> dict[str, Tensor] | Detections:
        """Compute the losses in training mode, the detections in evaluation mode.

        Args:
            images: (N, 3, H, W) uint8 RGB, each image at the top left, the rest zeros.
            image_sizes_hw: (N, 2) int64, sizes without the padding.
            targets: Needed in training mode, ignored otherwise.

        Returns:
            Scalars to be added: loss_objectness, loss_proposal_box, loss_class, loss_box, loss_mask
            and, with the squeeze, loss_boundary, loss_contraction, loss_expansion. Or the
            detections.

        Raises:
            ValueError: targets are missing, or lack the masks that the "roi" target source reads.
        """
        if not self.training:
            return self._detect(images, image_sizes_hw)
        if targets is None:
            raise ValueError(
                "targets: missing. In training mode call model(images, sizes, targets)."
            )
        if self.config.mask_head.targets.source == "roi" and targets.masks is None:
            raise ValueError(
                "targets.masks: missing. The target source 'roi' cuts masks out of images: collate "
                "them with the batch, or set mask_head.targets.source to 'field'."
            )
        return self._losses(images, image_sizes_hw, _with_a_slot(targets))

    @torch.no_grad()
    def masks_for_boxes(
        self, images: Tensor, image_sizes_hw: Tensor, boxes_xyxy: Tensor, category_index: Tensor
    ) -> Tensor:
        """Masks that the model draws into boxes it is given.

        Args:
            images: (N, 3, H, W) uint8.
            image_sizes_hw: (N, 2) int64.
            boxes_xyxy: (N, D, 4).
            category_index: (N, D) int64.

        Returns:
            (N, D, M, M) probabilities.
        """
        features = self.backbone(images, image_sizes_hw)
        used = torch.arange(category_index.numel(), device=images.device)
        return self._mask_probs(features, boxes_xyxy, category_index, used)

    def _losses(
        self, images: Tensor, image_sizes_hw: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        features: list[Tensor] = self.backbone(images, image_sizes_hw)
        anchors = self._anchors(features, image_sizes_hw)
        logits, deltas = self.proposals(features)
        losses = self.proposals.losses(logits, deltas, anchors, targets)
        proposals = self.proposals.propose(logits, deltas, anchors, image_sizes_hw)
        rois = sample_rois(
            proposals,
            targets,
            config=self.config.box_head,
            num_classes=self.config.num_classes,
        )
        losses |= self._box_losses(features, rois, targets)
        losses |= self._mask_losses(features, rois, targets)
        return losses

    def _anchors(self, features: Sequence[Tensor], image_sizes_hw: Tensor) -> Anchors:
        return make_anchors(
            features,
            image_sizes_hw,
            config=self.config.proposals,
            geometry=self.config.geometry,
        )

    def _box_losses(
        self, features: Sequence[Tensor], rois: SampledRois, targets: Targets
    ) -> dict[str, Tensor]:
        used = used_slots(rois.valid)
        logits, deltas = self._score_boxes(features, rois.boxes_xyxy, used)
        return box_losses(
            logits, deltas, rois=rois, target_boxes_xyxy=targets.boxes_xyxy, used=used
        )

    def _score_boxes(
        self, features: Sequence[Tensor], boxes_xyxy: Tensor, used: Tensor
    ) -> tuple[Tensor, Tensor]:
        pooled = pool_rois(
            features[:4],
            rois_of_slots(boxes_xyxy, used),
            side=self.config.box_head.roi_side,
            geometry=self.config.geometry,
        )
        logits, deltas = self.box_head(pooled)
        return logits, deltas

    def _mask_losses(
        self, features: Sequence[Tensor], rois: SampledRois, targets: Targets
    ) -> dict[str, Tensor]:
        config = self.config
        # Foreground fills the first slots: the rest cannot hold any.
        num_slots = max(
            1, int(config.box_head.samples_per_image * config.box_head.positive_fraction)
        )
        foreground = rois.foreground[:, :num_slots]
        boxes = rois.boxes_xyxy[:, :num_slots]
        used = used_slots(foreground)
        weights = foreground.flatten()[used].float()
        # An empty slot has the background's index, which is no mask's.
        category = (
            rois.category_index[:, :num_slots].flatten()[used].clamp(max=config.num_classes - 1)
        )
        slot = rois.target_slot[:, :num_slots].flatten()[used]
        mask_targets = self._mask_targets(rois_of_slots(boxes, used), slot, targets)
        pooled = self._pool_for_masks(features, boxes, used)
        if isinstance(self.mask_head, SqueezeMaskHead):
            return squeeze_losses(
                self.mask_head(*pooled, category),
                mask_targets,
                weights=weights,
                loss_weights=config.mask_head.loss_weights,
            )
        loss = bce_loss(self.mask_head(*pooled, category), mask_targets.mask, weights=weights)
        return {"loss_mask": loss * config.mask_head.loss_weights.mask}

    @torch.no_grad()
    def _mask_targets(self, rois: Tensor, slot: Tensor, targets: Targets) -> MaskTargets:
        """The targets of RoIs (R, 5) whose objects are in the given slots (R,) of their images."""
        config = self.config.mask_head
        side, boxes = 2 * config.roi_side, rois[:, 1:]
        image = rois[:, 0].long()
        kernel_size, unite = config.targets.kernel_size, config.targets.unite_boundary
        if config.targets.source == "roi" and targets.masks is not None:
            masks = crop_masks(targets.masks, boxes, image, slot, side=side)
            return targets_from_masks(masks, kernel_size=kernel_size, unite_boundary=unite)
        distance = sample_field(
            targets.squeeze_field[image, slot],
            targets.field_frame_xyxy[image, slot],
            boxes,
            side=side,
        )
        return targets_from_distance(distance, kernel_size=kernel_size, unite_boundary=unite)

    def _pool_for_masks(
        self, features: Sequence[Tensor], boxes_xyxy: Tensor, used: Tensor
    ) -> tuple[Tensor, ...]:
        side, geometry = self.config.mask_head.roi_side, self.config.geometry
        rois = rois_of_slots(boxes_xyxy, used)
        pooled = pool_rois(features[:4], rois, side=side, geometry=geometry)
        if isinstance(self.mask_head, SqueezeMaskHead):
            return pooled, pool_finest(features[0], rois, side=2 * side, geometry=geometry)
        return (pooled,)

    @torch.no_grad()
    def _detect(self, images: Tensor, image_sizes_hw: Tensor) -> Detections:
        features: list[Tensor] = self.backbone(images, image_sizes_hw)
        anchors = self._anchors(features, image_sizes_hw)
        logits, deltas = self.proposals(features)
        proposals: Proposals = self.proposals.propose(logits, deltas, anchors, image_sizes_hw)
        every = torch.arange(proposals.valid.numel(), device=images.device)
        scores, boxes = self._score_boxes(features, proposals.boxes_xyxy, every)
        found = detect_boxes(
            scores,
            boxes,
            proposals=proposals,
            image_sizes_hw=image_sizes_hw,
            config=self.config.box_head,
            geometry=self.config.geometry,
        )
        probs = self._mask_probs(
            features, found.boxes_xyxy, found.category_index, used_slots(found.valid)
        )
        return found._replace(mask_probs=probs * found.valid[:, :, None, None])

    def _mask_probs(
        self, features: Sequence[Tensor], boxes_xyxy: Tensor, category_index: Tensor, used: Tensor
    ) -> Tensor:
        pooled = self._pool_for_masks(features, boxes_xyxy, used)
        category = category_index.flatten()[used]
        head = self.mask_head
        drawn: Tensor = (
            head.masks(pooled[0], pooled[1], category)
            if isinstance(head, SqueezeMaskHead)
            else head(*pooled, category)
        )
        probs = drawn.new_zeros(category_index.numel(), *drawn.shape[1:], dtype=torch.float32)
        probs = probs.index_copy(0, used, drawn.float().sigmoid())
        return probs.view(*category_index.shape, *drawn.shape[1:])


def _with_a_slot(targets: Targets) -> Targets:
    """Give a batch without any object one empty slot: a maximum over no slot would not exist."""
    if targets.valid.shape[1]:
        return targets
    n, side = len(targets.valid), targets.squeeze_field.shape[-1]
    return targets._replace(
        boxes_xyxy=F.pad(targets.boxes_xyxy, (0, 0, 0, 1)),
        category_index=F.pad(targets.category_index, (0, 1)),
        valid=F.pad(targets.valid, (0, 1)),
        squeeze_field=targets.squeeze_field.new_full((n, 1, side, side), -1),
        field_frame_xyxy=F.pad(targets.field_frame_xyxy, (0, 0, 0, 1)),
        masks=None if targets.masks is None else F.pad(targets.masks, (0, 0, 0, 0, 0, 1)),
    )
