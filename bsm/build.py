"""Build the model that a config describes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bsm.checkpoints.categories import CategoryAxes, find_category_axes
from bsm.checkpoints.load import load_model
from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.models import ModelConfig, without_weights
from bsm.configs.refine import RefinerConfig
from bsm.configs.semantic import DeepLabConfig
from bsm.instance.rcnn import MaskRCNN
from bsm.refine.refiner import Refiner
from bsm.semantic.deeplab import DeepLab

_RANDOM_FUNCTIONS = {nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_} | {
    Tensor.normal_,
    Tensor.uniform_,
}
"""Those that initialize parameters; the other functions of nn.init call them."""


class SkipRandomInit(TorchFunctionMode):
    """Leave parameters uninitialized that would get random values, for models that are loaded.

        with SkipRandomInit():
            model = build_model(config)
        load_weights(model, path)

    Constant parameters and buffers get their values. Drawing the others takes seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401  torch's signature
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Return the tensor as it is instead of filling it with random values."""
        kwargs = kwargs or {}
        if func in _RANDOM_FUNCTIONS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@overload
def build_model(config: MaskRCNNConfig) -> MaskRCNN: ...
@overload
def build_model(config: DeepLabConfig) -> DeepLab: ...
@overload
def build_model(config: RefinerConfig) -> Refiner: ...


def build_model(config: ModelConfig) -> MaskRCNN | DeepLab | Refiner:
    """Build the model that a config describes, on the CPU, in training mode.

    Raises:
        ValueError: timm does not know the backbone, its features lack the strides that the model
            needs, or the weights do not fit.
    """
    # A weights file covers the whole model, so backbone.weights is not read.
    model = _build(without_weights(config) if config.weights else config)
    if config.weights:
        load_model(model, config, category_axes=_find_category_axes(config))
    return model


def _build(config: ModelConfig) -> MaskRCNN | DeepLab | Refiner:
    match config:
        case MaskRCNNConfig():
            return MaskRCNN(config)
        case DeepLabConfig():
            return DeepLab(config)
        case RefinerConfig():
            return Refiner(config)


def _find_category_axes(config: ModelConfig) -> CategoryAxes:
    """Compare two models without values; {} for a model that takes the file's categories as is."""
    if isinstance(config, RefinerConfig) or not config.weights_categories:
        return {}
    start: Any = without_weights(config)
    count = config.num_classes
    with torch.device("meta"):
        states = [_build(replace(start, num_classes=n)).state_dict() for n in (count, count + 1)]
    return find_category_axes(*states, num_classes=count)
