"""Mask R-CNN: backbone, region proposals, box head, mask head.

N images, T target slots, S RoI slots, R RoIs, D detection slots, K categories, M side of a mask
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsm.backbone import FpnBackbone
from bsm.configs.instance import MaskRCNNConfig
from bsm.exporting import is_exporting
from bsm.instance.boxes import BoxHead
from bsm.instance.cascade import CascadeBoxHead
from bsm.instance.convolutions import add_pyramid_norms
from bsm.instance.mask_heads.build import build_mask_head
from bsm.instance.proposals import Anchors, ProposalNetwork, make_anchors
from bsm.instance.roi import SampledRois, find_used_slots, gather_rois, sample_rois
from bsm.instance.roi_targets import MaskRois
from bsm.instance.tensors import Detections, Targets

_ROIS_AT_ONCE_ON_CPU = 25
"""Features of 28 x 28 cells of as many RoIs take 20 MB."""


class MaskRCNN(nn.Module):
    """Take images; return losses in training mode and detections in evaluation mode."""

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FpnBackbone(config.backbone)
        add_pyramid_norms(self.backbone, config.head_norm)
        self.proposals = ProposalNetwork(config)
        box_head = CascadeBoxHead if config.box_head.kind == "cascade" else BoxHead
        self.box_head = box_head(config)
        self.mask_head = build_mask_head(config)
        if config.trains == "masks":
            # No loss reaches them: DDP and the optimizer skip parameters without a gradient.
            self.proposals.requires_grad_(requires_grad=False)
            self.box_head.requires_grad_(requires_grad=False)

    def forward(
        self, images: Tensor, image_sizes_hw: Tensor, targets: Targets | None = None
    ) -> dict[str, Tensor] | Detections:
        """Compute the losses in training mode, the detections in evaluation mode.

        Args:
            images: (N, 3, H, W) uint8 RGB, each image at the top left, the rest zeros.
            image_sizes_hw: (N, 2) int64, sizes without the padding.
            targets: required in training mode, ignored otherwise.

        Returns:
            Losses to add up: loss_objectness, loss_proposal_box, loss_class and loss_box (of each
            stage in a cascade), and those of the mask head, or only the latter if only masks are
            trained. Or the detections.

        Raises:
            ValueError: targets are missing, or lack the masks that the "roi" target source reads.
        """
        if not self.training:
            return self._detect(images, image_sizes_hw)
        if targets is None:
            raise ValueError(
                "targets: missing. In training mode call model(images, sizes, targets)."
            )
        targets = _ensure_slot(targets)
        if self.config.trains == "masks":
            return self._compute_mask_losses(images, image_sizes_hw, targets)
        return self._compute_losses(images, image_sizes_hw, targets)

    @torch.no_grad()
    def predict_masks(
        self, images: Tensor, image_sizes_hw: Tensor, boxes_xyxy: Tensor, category_index: Tensor
    ) -> Tensor:
        """Predict masks for given boxes.

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
        return self._predict_mask_probs(features, boxes_xyxy, category_index, used)

    def _compute_losses(
        self, images: Tensor, image_sizes_hw: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        features: list[Tensor] = self.backbone(images, image_sizes_hw)
        anchors = self._make_anchors(features, image_sizes_hw)
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
        rois = self._select_foreground(sampled._replace(boxes_xyxy=boxes))
        return losses | box_losses | self.mask_head.losses(features[:4], rois, targets)

    def _compute_mask_losses(
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
        mask_rois = _to_mask_rois(rois)
        losses: dict[str, Tensor] = self.mask_head.losses(features[:4], mask_rois, targets)
        # DDP waits for the gradient of every level, even if no box is pooled from it.
        zero = torch.stack([level.float().sum() for level in features]).sum() * 0.0
        return losses | {"loss_mask": losses["loss_mask"] + zero}

    def _make_anchors(self, features: Sequence[Tensor], image_sizes_hw: Tensor) -> Anchors:
        return make_anchors(
            features,
            image_sizes_hw,
            config=self.config.proposals,
            box_convention=self.config.box_convention,
        )

    def _trains_on_predicted_boxes(self) -> bool:
        """Return whether masks are trained in the box head's boxes (MaskHeadConfig.train_on)."""
        head = self.config.mask_head
        if head.train_on != "method":
            return head.train_on == "predicted"
        # As in BMask R-CNN's and PointRend's configurations; detectron2's cascade has no option.
        return head.kind in {"bmask", "pointrend"} and self.config.box_head.kind == "single"

    def _select_foreground(self, rois: SampledRois) -> MaskRois:
        # Foreground fills the first slots; the rest hold none.
        config = self.config.box_head
        num_slots = max(1, int(config.samples_per_image * config.positive_fraction))
        return _to_mask_rois(SampledRois(*(field[:, :num_slots] for field in rois)))

    @torch.no_grad()
    def _detect(self, images: Tensor, image_sizes_hw: Tensor) -> Detections:
        features: list[Tensor] = self.backbone(images, image_sizes_hw)
        anchors = self._make_anchors(features, image_sizes_hw)
        logits, deltas = self.proposals(features)
        proposals = self.proposals.propose(logits, deltas, anchors, image_sizes_hw)
        detections: Detections = self.box_head.detect(features[:4], proposals, image_sizes_hw)
        used = find_used_slots(detections.valid)
        probs = self._predict_mask_probs(
            features, detections.boxes_xyxy, detections.category_index, used
        )
        return detections._replace(mask_probs=probs * detections.valid[:, :, None, None])

    def _predict_mask_probs(
        self, features: Sequence[Tensor], boxes_xyxy: Tensor, category_index: Tensor, used: Tensor
    ) -> Tensor:
        rois, category = gather_rois(boxes_xyxy, used), category_index.flatten()[used]
        step = self._count_rois_at_once(rois)
        starts = range(0, max(len(rois), 1), step)
        parts = [(rois[at : at + step], category[at : at + step]) for at in starts]
        logits = torch.cat([self.mask_head.predict(features[:4], *part) for part in parts])
        probs = logits.new_zeros(category_index.numel(), *logits.shape[1:], dtype=torch.float32)
        probs = probs.index_copy(0, used, logits.float().sigmoid())
        return probs.view(*category_index.shape, *logits.shape[1:])

    def _count_rois_at_once(self, rois: Tensor) -> int:
        """Return how many masks to predict at once: all, or on the CPU a few.

        Their features then fit into memory that is reused, where new pages for all of them would
        take a fifth of the mask head's time.
        """
        # The stage for large objects chooses among all of an image.
        if (
            is_exporting()
            or rois.device.type != "cpu"
            or self.config.mask_head.fine_stages.large_channels
        ):
            return max(len(rois), 1)
        return _ROIS_AT_ONCE_ON_CPU


def _to_mask_rois(rois: SampledRois) -> MaskRois:
    """Flatten the slots to compute over all images."""
    used = find_used_slots(rois.foreground)
    weights = rois.foreground.flatten()[used].float()
    # An empty slot has the background's index, which has no mask.
    category = rois.category_index.flatten()[used] * rois.foreground.flatten()[used]
    return MaskRois(
        gather_rois(rois.boxes_xyxy, used),
        category,
        rois.target_slot.flatten()[used],
        weights,
        used % rois.valid.shape[1],
    )


def _ensure_slot(targets: Targets) -> Targets:
    """Add an empty slot to a batch without objects: there is no maximum over zero slots."""
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
        mask_scale_xy=None
        if targets.mask_scale_xy is None
        else F.pad(targets.mask_scale_xy, (0, 0, 0, 1)),
    )
