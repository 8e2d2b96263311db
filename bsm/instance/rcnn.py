"""Mask R-CNN, assembled: backbone, proposals, box head, mask head.

N images, T target slots, S RoI slots, R RoIs, D detection slots, K categories, M side of a mask
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsm.backbone import Backbone
from bsm.configs.instance import MaskRCNNConfig
from bsm.instance.boxes import BoxHead
from bsm.instance.cascade import CascadeBoxHead
from bsm.instance.mask_heads.build import build_mask_head
from bsm.instance.proposals import Anchors, ProposalNetwork, make_anchors
from bsm.instance.roi import SampledRois, rois_of_slots, sample_rois, used_slots
from bsm.instance.roi_targets import MaskRois
from bsm.instance.tensors import Detections, Targets


class MaskRCNN(nn.Module):
    """Images in; losses out in training, detections out in inference."""

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config = config
        width, num_classes = config.backbone.fpn_channels, config.num_classes
        self.backbone = Backbone(config.backbone)
        box_convention = config.box_convention
        self.proposals = ProposalNetwork(
            width, config=config.proposals, box_convention=box_convention
        )
        box_head = CascadeBoxHead if config.box_head.kind == "cascade" else BoxHead
        self.box_head = box_head(
            width, num_classes=num_classes, config=config.box_head, box_convention=box_convention
        )
        self.mask_head = build_mask_head(
            width, num_classes=num_classes, config=config.mask_head, box_convention=box_convention
        )
        if config.trains == "masks":
            # No loss reaches them: DDP and the optimizer leave out what asks for no gradient.
            self.proposals.requires_grad_(requires_grad=False)
            self.box_head.requires_grad_(requires_grad=False)

    def forward(
        self, images: Tensor, image_sizes_hw: Tensor, targets: Targets | None = None
    ) -> dict[str, Tensor] | Detections:
        """Compute the losses in training mode, the detections in evaluation mode.

        Args:
            images: (N, 3, H, W) uint8 RGB, each image at the top left, the rest zeros.
            image_sizes_hw: (N, 2) int64, sizes without the padding.
            targets: Needed in training mode, ignored otherwise.

        Returns:
            Scalars to be added: loss_objectness, loss_proposal_box, loss_class and loss_box (of
            each stage in a cascade), and those of the mask head; the latter alone where only masks
            are trained. Or the detections.

        Raises:
            ValueError: targets are missing, or lack the masks that the "roi" target source reads.
        """
        if not self.training:
            return self._detect(images, image_sizes_hw)
        losses = self._mask_losses if self.config.trains == "masks" else self._losses
        return losses(images, image_sizes_hw, self._checked(targets))

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

    def _checked(self, targets: Targets | None) -> Targets:
        if targets is None:
            raise ValueError(
                "targets: missing. In training mode call model(images, sizes, targets)."
            )
        if self.config.mask_head.targets.source == "roi" and targets.masks is None:
            raise ValueError(
                "targets.masks: missing. The target source 'roi' cuts masks out of images: collate "
                "them with the batch, or set mask_head.targets.source to 'field'."
            )
        return _with_a_slot(targets)

    def _losses(
        self, images: Tensor, image_sizes_hw: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        features: list[Tensor] = self.backbone(images, image_sizes_hw)
        anchors = self._anchors(features, image_sizes_hw)
        logits, deltas = self.proposals(features)
        losses = self.proposals.losses(logits, deltas, anchors, targets)
        proposals = self.proposals.propose(logits, deltas, anchors, image_sizes_hw)
        sampled = sample_rois(
            proposals,
            targets,
            config=self.config.box_head,
            num_classes=self.config.num_classes,
        )
        box_losses, refined = self.box_head.losses(features[:4], sampled, targets, image_sizes_hw)
        boxes = refined if self._trains_on_predicted_boxes() else sampled.boxes_xyxy
        rois = self._foreground(sampled._replace(boxes_xyxy=boxes))
        return losses | box_losses | self.mask_head.losses(features[:4], rois, targets)

    def _mask_losses(
        self, images: Tensor, image_sizes_hw: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        features: list[Tensor] = self.backbone(images, image_sizes_hw)
        slots = torch.arange(targets.valid.shape[1], device=images.device)
        rois = SampledRois(
            targets.boxes_xyxy,
            targets.category_index,
            slots.expand(len(images), -1),
            targets.valid,
            targets.valid,
        )
        losses: dict[str, Tensor] = self.mask_head.losses(features[:4], _mask_rois(rois), targets)
        # A level that no box is pooled from has a gradient too: DDP waits for all of them.
        nothing = torch.stack([level.float().sum() for level in features]).sum() * 0.0
        return losses | {"loss_mask": losses["loss_mask"] + nothing}

    def _anchors(self, features: Sequence[Tensor], image_sizes_hw: Tensor) -> Anchors:
        return make_anchors(
            features,
            image_sizes_hw,
            config=self.config.proposals,
            box_convention=self.config.box_convention,
        )

    def _trains_on_predicted_boxes(self) -> bool:
        """Whether masks are trained in the boxes that the box head predicts (MaskHeadConfig)."""
        head = self.config.mask_head
        if head.train_on != "method":
            return head.train_on == "predicted"
        # BMask R-CNN's and PointRend's configurations; detectron2's cascade has no such choice.
        return head.kind in {"bmask", "pointrend"} and self.config.box_head.kind == "single"

    def _foreground(self, rois: SampledRois) -> MaskRois:
        # Foreground fills the first slots: the rest cannot hold any.
        config = self.config.box_head
        num_slots = max(1, int(config.samples_per_image * config.positive_fraction))
        return _mask_rois(SampledRois(*(each[:, :num_slots] for each in rois)))

    @torch.no_grad()
    def _detect(self, images: Tensor, image_sizes_hw: Tensor) -> Detections:
        features: list[Tensor] = self.backbone(images, image_sizes_hw)
        anchors = self._anchors(features, image_sizes_hw)
        logits, deltas = self.proposals(features)
        proposals = self.proposals.propose(logits, deltas, anchors, image_sizes_hw)
        found: Detections = self.box_head.detect(features[:4], proposals, image_sizes_hw)
        probs = self._mask_probs(
            features, found.boxes_xyxy, found.category_index, used_slots(found.valid)
        )
        return found._replace(mask_probs=probs * found.valid[:, :, None, None])

    def _mask_probs(
        self, features: Sequence[Tensor], boxes_xyxy: Tensor, category_index: Tensor, used: Tensor
    ) -> Tensor:
        drawn = self.mask_head.predict(
            features[:4], rois_of_slots(boxes_xyxy, used), category_index.flatten()[used]
        )
        probs = drawn.new_zeros(category_index.numel(), *drawn.shape[1:], dtype=torch.float32)
        probs = probs.index_copy(0, used, drawn.float().sigmoid())
        return probs.view(*category_index.shape, *drawn.shape[1:])


def _mask_rois(rois: SampledRois) -> MaskRois:
    """The slots to compute, flat over the images."""
    used = used_slots(rois.foreground)
    weights = rois.foreground.flatten()[used].float()
    # An empty slot has the background's index, which is no mask's.
    category = rois.category_index.flatten()[used] * rois.foreground.flatten()[used]
    return MaskRois(
        rois_of_slots(rois.boxes_xyxy, used),
        category,
        rois.target_slot.flatten()[used],
        weights,
        used % rois.valid.shape[1],
    )


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
