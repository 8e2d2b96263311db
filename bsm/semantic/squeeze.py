"""The boundary squeeze in DeepLabV3+: the whole map is one RoI, and each class is one mask.

The authors did not release this head. The paper puts the squeeze after the pyramid, with the first
stage's feature as the finer one; the rest follows the paper or the instance head:

  - M is the pyramid's feature and F' the first stage's: at strides of 8 and 4, twice as many cells,
    as on RoIs. The pyramid replaces the four convolutions before M. At an output stride of 16 the
    pyramid's feature is doubled first, so the squeeze always works at a stride of 8, as in the
    paper.
  - The refined feature replaces the pyramid's in the decoder. The decoder has convolutions of its
    own, so the last one of the released variant is left out.
  - Convolutions have batch norm: whole maps give enough statistics.
  - Boundary, contraction and expansion each have the instance head's predictor (deconvolution,
    ReLU, 1 x 1 convolution), with one map of logits for each class, resized to the crop. A pixel
    may be in bands of several classes, so each map has its own sigmoid. They run only in training.

N images, C channels of the pyramid, K classes, h, w size at a stride of 4
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bsm.configs.semantic import DeepLabConfig
from bsm.guided_flow import guided_flow_losses
from bsm.light import LightBoundarySqueeze
from bsm.semantic.decoder import Decoder, Features, resize, upsample_to_image
from bsm.semantic.field import ClassTargets, SemanticTargets, targets_from_semantic_field
from bsm.semantic.guided_flow import make_border_flow_targets
from bsm.semantic.losses import class_bce_loss, class_dice_loss, label_loss
from bsm.squeeze import BoundarySqueeze, SqueezedFeatures

SQUEEZE_STRIDE = 8
"""Pixels per cell of the squeezed feature."""


class BandPredictor(nn.Module):
    """A deconvolution that doubles the side, and one map of logits for each class."""

    def __init__(self, channels: int, *, num_classes: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.deconv.bias)  # type: ignore[arg-type]
        self.logits = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.logits.weight, std=0.001)  # as in instance mask heads
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(self, feature: Float[Tensor, "N C m n"]) -> Float[Tensor, "N K h w"]:
        """Predict the logits of one band of each class, at a stride of 4."""
        logits: Tensor = self.logits(F.relu(self.deconv(feature)))
        return logits


class SqueezeHead(nn.Module):
    """DeepLabV3+'s head with the squeeze between pyramid and decoder."""

    def __init__(self, low_channels: int, *, config: DeepLabConfig) -> None:
        super().__init__()
        self.config, self.num_classes = config.head, config.num_classes
        width, squeeze = config.head.channels, config.head.squeeze
        kind = LightBoundarySqueeze if squeeze.variant == "light" else BoundarySqueeze
        self.squeeze = kind(width, fine_channels=low_channels, config=squeeze)
        self.decoder = Decoder(low_channels, config=config)
        self.bands = nn.ModuleDict(
            {
                name: BandPredictor(self.squeeze.supervised_channels, num_classes=self.num_classes)
                for name in squeeze.branches
            }
        )

    def squeeze_features(self, features: Features) -> SqueezedFeatures:
        """Compute the features of all predictors."""
        height, width = features.low.shape[-2:]
        context = resize(features.context, (height // 2, width // 2))
        fine = features.low if self.config.squeeze.fine_features else None
        squeezed: SqueezedFeatures = self.squeeze(context, fine)
        return squeezed

    def losses(self, features: Features, targets: SemanticTargets) -> dict[str, Tensor]:
        """Compute the losses of the label map and of each branch.

        Returns:
            loss_segmentation, loss_boundary (cross-entropy and Dice), loss_contraction and
            loss_expansion (Dice), and those of guided flow if the config uses it.
        """
        config, label = self.config, targets.label
        squeezed = self.squeeze_features(features)
        logits: Tensor = self.decoder(features.low, squeezed.refined)
        whole = upsample_to_image(logits, features, like=label)
        losses = {"loss_segmentation": label_loss(whole, label, config=config.cross_entropy)}
        wanted = targets_from_semantic_field(
            targets,
            num_classes=self.num_classes,
            kernel_size=config.targets.kernel_size,
            unite_boundary=config.targets.unite_boundary,
        )
        for name, predictor in self.bands.items():
            band_logits: Tensor = predictor(getattr(squeezed, name))
            whole = upsample_to_image(band_logits, features, like=label)
            losses[f"loss_{name}"] = _band_loss(whole, wanted, name=name)
        losses = {
            name: loss * getattr(config.loss_weights, name.removeprefix("loss_"))
            for name, loss in losses.items()
        }
        if config.guided_flow.weight:
            size_hw = (squeezed.refined.shape[-2], squeezed.refined.shape[-1])
            flow_targets = make_border_flow_targets(
                label, size_hw=size_hw, stride=SQUEEZE_STRIDE, reach=config.guided_flow.reach
            )
            losses |= guided_flow_losses(squeezed.flows, flow_targets, config=config.guided_flow)
        return losses

    def predict(self, features: Features) -> Float[Tensor, "N K h w"]:
        """Predict the logits of every class at a stride of 4."""
        logits: Tensor = self.decoder(features.low, self.squeeze_features(features).refined)
        return logits


def _band_loss(logits: Tensor, targets: ClassTargets, *, name: str) -> Tensor:
    band = getattr(targets, name)
    dice = class_dice_loss(logits, band, targets=targets)
    return dice + class_bce_loss(logits, band, targets=targets) if name == "boundary" else dice
