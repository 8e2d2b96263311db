"""DeepLabV3+: dilated backbone, atrous pyramid, and one of three heads.

N images, H, W padded image size, K classes
"""

from typing import TypeAlias

import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor, nn

from bsm.backbone import make_inside_mask
from bsm.backbone_norms import convert_norm
from bsm.configs.semantic import DeepLabConfig
from bsm.semantic.backbone import DilatedBackbone
from bsm.semantic.decoder import (
    AtrousPyramid,
    Features,
    PlainHead,
    build_classifier,
    build_conv_norm_relu,
    upsample_to_image,
)
from bsm.semantic.field import VOID, SemanticTargets
from bsm.semantic.losses import label_loss
from bsm.semantic.pointrend import PointRendHead
from bsm.semantic.squeeze import SqueezeHead

Head: TypeAlias = PlainHead | PointRendHead | SqueezeHead
"""Each has `losses(features, targets)`, weighted scalars by name to add up, and
`predict(features)`, logits of every class at a stride of its own."""


class DeepLab(nn.Module):
    """Take images; return losses in training mode and class logits in evaluation mode."""

    def __init__(self, config: DeepLabConfig) -> None:
        super().__init__()
        self.config = config
        width, stride = config.head.channels, config.output_stride
        self.backbone = DilatedBackbone(
            config.backbone, output_stride=stride, dilate_first_blocks=config.dilate_first_blocks
        )
        low, _, before_last, last = self.backbone.channels
        rates = [rate * 16 // stride for rate in config.head.aspp_rates]
        self.pyramid = AtrousPyramid(last, width, rates=rates, stride=stride)
        heads: dict[str, type[Head]] = {
            "plain": PlainHead,
            "pointrend": PointRendHead,
            "squeeze": SqueezeHead,
        }
        self.head = heads[config.head.kind](low, config=config)
        self.auxiliary: nn.Module | None = None
        if config.head.loss_weights.auxiliary:
            self.auxiliary = nn.Sequential(
                build_conv_norm_relu(before_last, width, 3),
                build_classifier(width, config.num_classes),
            )
        if config.backbone.norm != "frozen":
            for part in (self.pyramid, self.head, self.auxiliary):
                if part is not None:
                    convert_norm(part, norm=config.backbone.norm)

    def forward(
        self,
        images: UInt8[Tensor, "N 3 H W"],
        image_sizes_hw: Integer[Tensor, "N 2"],
        targets: SemanticTargets | None = None,
    ) -> dict[str, Tensor] | Float[Tensor, "N K H W"]:
        """Compute the losses in training mode, the logits in evaluation mode.

        Logits, not labels: windows, scales and flips of one image are averaged before the label is
        chosen (`choose_labels`). Logits beyond an image are meaningless.

        Args:
            images: RGB, each image at the top left, the rest zeros.
            image_sizes_hw: sizes without the padding.
            targets: of the same H and W; labels are below K, or 255 where void or beyond the
                image. Required in training mode, ignored otherwise.

        Returns:
            Losses to add up: those of the head, and loss_auxiliary if it has a weight. Or the
            logits, float32.

        Raises:
            ValueError: targets are missing or of another size.
        """
        if self.training:
            return self._compute_losses(images, image_sizes_hw, _check_targets(targets, images))
        with torch.no_grad():
            features, _ = self._compute_features(images, image_sizes_hw)
            return upsample_to_image(self.head.predict(features), features, like=images)

    def _compute_features(self, images: Tensor, image_sizes_hw: Tensor) -> tuple[Features, Tensor]:
        low, _, before_last, last = self.backbone(images, image_sizes_hw)
        context: Tensor = self.pyramid(last, image_sizes_hw)
        return Features(low, context, image_sizes_hw), before_last

    def _compute_losses(
        self, images: Tensor, image_sizes_hw: Tensor, targets: SemanticTargets
    ) -> dict[str, Tensor]:
        features, before_last = self._compute_features(images, image_sizes_hw)
        losses = self.head.losses(features, targets)
        if self.auxiliary is not None:
            config = self.config.head
            logits = upsample_to_image(self.auxiliary(before_last), features, like=images)
            loss = label_loss(logits, targets.label, config=config.cross_entropy)
            losses["loss_auxiliary"] = loss * config.loss_weights.auxiliary
        return losses


def choose_labels(
    logits: Float[Tensor, "N K H W"], image_sizes_hw: Integer[Tensor, "N 2"]
) -> UInt8[Tensor, "N H W"]:
    """Choose the most likely class of each pixel; beyond the image it is 255."""
    inside = make_inside_mask(image_sizes_hw, (logits.shape[-2], logits.shape[-1]))
    return torch.where(inside, logits.argmax(dim=1).to(torch.uint8), VOID)


def _check_targets(targets: SemanticTargets | None, images: Tensor) -> SemanticTargets:
    if targets is None:
        raise ValueError("targets: missing. In training mode call model(images, sizes, targets).")
    expected = (len(images), *images.shape[-2:])
    wrong = [
        f"{name} is {tuple(value.shape)}"
        for name, value in targets._asdict().items()
        if value.shape != (expected if value.dim() == 3 else expected[:1])
    ]
    if wrong:
        raise ValueError(
            f"targets: {'; '.join(wrong)}, but the images are {tuple(images.shape)}. Label and "
            f"field maps need the images' size {expected}; zoom and sample_seed one value an image."
        )
    return targets
