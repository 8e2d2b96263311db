"""Load a file into a model: identify its layout by name, translate, check, copy all or nothing."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn

from bsm.checkpoints import detectron2, efficientnet_lite, released_heads, torchvision
from bsm.checkpoints.categories import CategoryAxes, take_categories
from bsm.checkpoints.layouts import ColorOrder, Layout, TranslatedState, translate
from bsm.checkpoints.weights import copy_state, flatten_name, read_weights
from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.models import ModelConfig
from bsm.configs.refine import RefinerConfig
from bsm.configs.shared import BackboneConfig

TIMM_BACKBONE = Layout(
    title="a timm backbone", signature_key="", to_external_name=lambda ours: ours
)
"""Identified by the backbone's own names, which differ from model to model."""
BACKBONES = (
    detectron2.RESNET,
    detectron2.CAFFE2_RESNET,
    efficientnet_lite.LITE1_OR_2,
    efficientnet_lite.LITE0,
)
OWN_MODEL = Layout(
    title="this package's Mask R-CNN",
    signature_key="proposals.objectness.weight",
    to_external_name=lambda ours: ours,
)
OWN_SEMANTIC = Layout(
    title="this package's DeepLabV3+",
    signature_key="pyramid.branches.0.0.weight",
    to_external_name=lambda ours: ours,
)
OWN_REFINER = Layout(
    title="this package's refiner",
    signature_key="correction.weight",
    to_external_name=lambda ours: ours,
)
_BY_DETECTRON2 = (released_heads.BSM, released_heads.BMASK, detectron2.MASK_RCNN)
"""They share their detector's names, so the plain one is tried last."""
MODELS = (
    OWN_MODEL,
    torchvision.MASK_RCNN,
    torchvision.MASK_RCNN_V2,
    *_BY_DETECTRON2,
    OWN_SEMANTIC,
    OWN_REFINER,
)
_MAX_NAMES = 5


def load_backbone(backbone: nn.Module, config: BackboneConfig, *, cut_off: Collection[str]) -> None:
    """Fill a timm backbone from the file `config.weights`.

    Args:
        backbone: with timm's own names and batch norms.
        config: of the backbone.
        cut_off: names of the whole timm model, which the file may have and the backbone not.

    Raises:
        ValueError: the file cannot be read, has an unknown layout, does not fit the backbone, or
            conflicts with this config; every problem is listed.
    """
    source, tensors = config.weights, read_weights(config.weights)
    own = backbone.state_dict()
    layout = _find_backbone_layout(tensors, own, config=config)
    if layout is TIMM_BACKBONE:  # its names may differ from the backbone's in "." and "_"
        translated = TranslatedState(tensors, [])
    else:
        translated = translate(layout, tensors, own=own)
    if layout is detectron2.CAFFE2_RESNET:
        _raise_problems(source, detectron2.check_caffe2_config(tensors, config))
    copy_state(
        backbone,
        _flip_to_rgb(translated.tensors, own, layout=layout, config=config),
        source=source,
        allowed_extra_keys=cut_off,
        unexpected_keys=translated.unexpected_keys,
    )


def load_model(model: nn.Module, config: ModelConfig, *, category_axes: CategoryAxes) -> None:
    """Fill a model from the file `config.weights`, except for `config.weights_leave_out`.

    Args:
        model: to fill.
        config: of the model.
        category_axes: where tensors hold categories, if the model has `weights_categories`.

    Raises:
        ValueError: the file cannot be read, has an unknown layout, does not fit the model, or
            conflicts with this config; every problem is listed.
    """
    source, tensors = config.weights, read_weights(config.weights)
    layout = _find_model_layout(tensors, source=source)
    own = model.state_dict()
    translated = translate(layout, tensors, own=own)
    if isinstance(config, MaskRCNNConfig):
        _raise_problems(source, _check_settings(layout, tensors, config))
    ours = translated.tensors
    if not isinstance(config, RefinerConfig) and config.weights_categories:
        ours = take_categories(ours, own, axes=category_axes, categories=config.weights_categories)
    copy_state(
        model,
        _flip_to_rgb(ours, own, layout=layout, config=config.backbone),
        source=source,
        unexpected_keys=translated.unexpected_keys,
        leave_out=config.weights_leave_out,
        advise=_make_adviser(translated.tensors, config),
    )


def _check_settings(
    layout: Layout, tensors: Mapping[str, Tensor], config: MaskRCNNConfig
) -> list[str]:
    """List the config fields that conflict with how the model was trained."""
    problems: list[str] = []
    if layout in _BY_DETECTRON2:
        order = _choose_color_order(layout, config.backbone)
        problems += detectron2.check_saved_settings(tensors, config, color_order=order)
    if layout is released_heads.BSM:
        problems += released_heads.check_squeeze(tensors, config)
    return problems


def _find_backbone_layout(
    tensors: Mapping[str, Tensor], own: Iterable[str], *, config: BackboneConfig
) -> Layout:
    source = config.weights
    for layout in BACKBONES:
        if layout.signature_key in tensors:
            if any(layout.to_external_name(key) is None for key in own):
                raise ValueError(
                    f"weights {source}: holds {layout.title}, but backbone.name {config.name} has "
                    "other parts. Name the backbone that was trained, such as resnet50, resnet101 "
                    "or resnext101_32x8d."
                )
            return layout
    names = {flatten_name(key) for key in own}
    if any(flatten_name(name) in names for name in tensors):
        return TIMM_BACKBONE
    for layout in MODELS:
        if layout.signature_key in tensors:
            raise ValueError(
                f"weights {source}: holds {layout.title}, not just a backbone. To start from it, "
                f'type: --model.weights {source} --model.backbone.weights ""'
            )
    raise ValueError(
        f"weights {source}: has neither timm's names for {config.name} ({_format_first(own)}) nor "
        "those of "
        + " or ".join(f"{layout.title} ({layout.signature_key}, ...)" for layout in BACKBONES)
        + f". It starts with {_format_first(tensors)}. If it is another backbone, name it in "
        "backbone.name; if it is another code's file, rename its tensors to timm's names first."
    )


def _find_model_layout(tensors: Mapping[str, Tensor], *, source: str) -> Layout:
    for layout in MODELS:
        if layout.signature_key in tensors:
            return layout
    is_backbone = "conv1.weight" in tensors or any(
        layout.signature_key in tensors for layout in BACKBONES
    )
    raise ValueError(
        f"weights {source}: has the names of no known model: "
        + ", ".join(f"{layout.title} ({layout.signature_key}, ...)" for layout in MODELS)
        + f". It starts with {_format_first(tensors)}. "
        + (
            f"To start from a backbone alone, type: --model.backbone.weights {source}"
            if is_backbone
            else "Rename its tensors to the names of this package first."
        )
    )


def _choose_color_order(layout: Layout, config: BackboneConfig) -> ColorOrder:
    order = config.weights_color_order
    return layout.color_order if order == "auto" else order


def _flip_to_rgb(
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    layout: Layout,
    config: BackboneConfig,
) -> dict[str, Tensor]:
    """Flip the channels of the first convolution if it reads BGR."""
    if _choose_color_order(layout, config) == "rgb":
        return dict(tensors)
    first = flatten_name(next(key for key, value in own.items() if value.shape[1:2] == (3,)))
    return {
        name: value.flip(1) if flatten_name(name) == first else value
        for name, value in tensors.items()
    }


def _make_adviser(
    tensors: Mapping[str, Tensor], config: ModelConfig
) -> Callable[[Sequence[str]], str]:
    """Make the function that suggests what to type, given the parts that do not fit."""

    def advise(parts: Sequence[str]) -> str:
        if any(part.startswith(("backbone", "trunk")) for part in parts):
            return f"; the backbone here is {config.backbone.name}"
        scores = next((key for key in tensors if key.endswith(".scores.bias")), None)
        counts = ""
        classes = getattr(config, "num_classes", None)
        if scores is not None and classes is not None and len(tensors[scores]) != classes + 1:
            theirs = len(tensors[scores]) - 1
            counts = f" (the file has {theirs} categories, the model {classes})"
        return (
            ", or start the parts that do not fit at random and ignore the file's other parts: "
            f"--model.weights-leave-out {' '.join(parts)}{counts}"
        )

    return advise


def _raise_problems(source: str, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"weights {source}: " + "; ".join(problems) + ".")


def _format_first(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:_MAX_NAMES]) + (", ..." if len(first) > _MAX_NAMES else "")
