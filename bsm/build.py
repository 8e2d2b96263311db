"""Build the model that a config describes."""

from typing import overload

from bsm.checkpoints.load import load_model
from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.models import ModelConfig, without_weights
from bsm.configs.semantic import DeepLabConfig
from bsm.instance.rcnn import MaskRCNN
from bsm.semantic.deeplab import DeepLab


@overload
def build_model(config: MaskRCNNConfig) -> MaskRCNN: ...
@overload
def build_model(config: DeepLabConfig) -> DeepLab: ...


def build_model(config: ModelConfig) -> MaskRCNN | DeepLab:
    """Build the model that a config describes, on the CPU, in training mode.

    Raises:
        ValueError: timm does not know the backbone, its features lack the strides that the model
            needs, or the weights do not fit.
    """
    # A weights file covers the whole model, so backbone.weights is not read.
    start = without_weights(config) if config.weights else config
    model = MaskRCNN(start) if isinstance(start, MaskRCNNConfig) else DeepLab(start)
    if config.weights:
        load_model(model, config)
    return model
