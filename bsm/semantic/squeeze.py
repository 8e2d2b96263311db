"""The boundary squeeze in DeepLabV3+: the whole map is one RoI, and each class is one mask.

The authors did not release this head. The paper puts the squeeze behind the pyramid, with the first
stage's feature as the finer one; the rest is decided here by what the paper or the instance head
does:

  - M is what the pyramid gives and F' the first stage's feature: at a stride of 8 and 4, twice as
    many cells, as on RoIs. There are no four convolutions before it: the pyramid has done that. At
    an output stride of 16 the pyramid's feature is doubled first, so that the squeeze always works
    at a stride of 8, where the paper has it.
  - What it gives goes where the pyramid's feature went in the decoder, which fuses by itself, so
    the released variant's last convolution is left out.
  - Convolutions have batch norm: on whole maps there are statistics.
  - Boundary, contraction and expansion each have the instance head's predictor (deconvolution,
    ReLU, 1 x 1 convolution), with one map of logits for each class, brought to the size of the
    crop. A pixel may be in bands of several classes, so each map has a sigmoid of its own. They are
    used by the losses alone: inference does not run them.

    N images, C channels of the pyramid, K classes, h, w size at a stride of 4
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bsm.configs.semantic import DeepLabConfig
from bsm.guided_flow import guided_flow_losses
from bsm.light import LightBoundarySqueeze
from bsm.semantic.decoder import Decoder, Features, full_size, resize
from bsm.semantic.field import ClassTargets, SemanticTargets, targets_from_semantic_field
from bsm.semantic.guided_flow import border_flow_targets
from bsm.semantic.losses import class_bce_loss, class_dice_loss, label_loss
from bsm.squeeze import BoundarySqueeze, Squeezed

SQUEEZE_STRIDE = 8
"""Pixels to a cell of what is squeezed."""


class BandPredictor(nn.Module):
    """A deconvolution that doubles the side, and logits of every class."""

    def __init__(self, channels: int, *, num_classes: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.deconv.bias)  # type: ignore[arg-type]
        self.logits = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.logits.weight, std=0.001)  # as for the masks of instances
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(self, feature: Float[Tensor, "N C m n"]) -> Float[Tensor, "N K h w"]:
        """Logits of one band of each class, at a stride of 4."""
        logits: Tensor = self.logits(F.relu(self.deconv(feature)))
        return logits


class SqueezeHead(nn.Module):
    """The squeeze between pyramid and decoder."""

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

    def squeezed(self, features: Features) -> Squeezed:
        """The features that everything is predicted from."""
        height, width = features.low.shape[-2:]
        context = resize(features.context, (height // 2, width // 2))
        fine = features.low if self.config.squeeze.fine_features else None
        squeezed: Squeezed = self.squeeze(context, fine)
        return squeezed

    def losses(self, features: Features, targets: SemanticTargets) -> dict[str, Tensor]:
        """Cross-entropy of the label map and the losses of each branch that there is.

        Returns:
            loss_segmentation, loss_boundary (cross-entropy and Dice), loss_contraction and
            loss_expansion (Dice), and those of guided flow where the config has it.
        """
        config, label = self.config, targets.label
        squeezed = self.squeezed(features)
        logits: Tensor = self.decoder(features.low, squeezed.refined)
        whole = full_size(logits, features, like=label)
        losses = {"loss_segmentation": label_loss(whole, label, config=config.cross_entropy)}
        wanted = targets_from_semantic_field(
            targets,
            num_classes=self.num_classes,
            kernel_size=config.targets.kernel_size,
            unite_boundary=config.targets.unite_boundary,
        )
        for name, predictor in self.bands.items():
            drawn: Tensor = predictor(getattr(squeezed, name))
            whole = full_size(drawn, features, like=label)
            losses[f"loss_{name}"] = _band_loss(whole, wanted, name=name)
        losses = {
            name: loss * getattr(config.loss_weights, name.removeprefix("loss_"))
            for name, loss in losses.items()
        }
        if config.guided_flow.weight:
            size_hw = (squeezed.refined.shape[-2], squeezed.refined.shape[-1])
            ways = border_flow_targets(
                label, size_hw=size_hw, stride=SQUEEZE_STRIDE, reach=config.guided_flow.reach
            )
            losses |= guided_flow_losses(squeezed.flows, ways, config=config.guided_flow)
        return losses

    def predict(self, features: Features) -> Float[Tensor, "N K h w"]:
        """Logits of every class at a stride of 4."""
        logits: Tensor = self.decoder(features.low, self.squeezed(features).refined)
        return logits


def _band_loss(logits: Tensor, targets: ClassTargets, *, name: str) -> Tensor:
    band = getattr(targets, name)
    dice = class_dice_loss(logits, band, targets=targets)
    return dice + class_bce_loss(logits, band, targets=targets) if name == "boundary" else dice
