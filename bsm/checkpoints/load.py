"""From a file to a model: tell the layout by its names, translate, check, copy all or nothing."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from torch import Tensor, nn

from bsm.checkpoints import detectron2, efficientnet_lite, torchvision
from bsm.checkpoints.layouts import ColorOrder, Layout, Translated, translate
from bsm.checkpoints.weights import copy_state, plain_name, read_weights
from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.semantic import DeepLabConfig
from bsm.configs.shared import BackboneConfig

TIMM_TRUNK = Layout(title="a timm trunk", told_by="", their_name=lambda ours: ours)
"""Told by the trunk's own names, which are other ones for each."""
TRUNKS = (
    detectron2.TRUNK,
    detectron2.CAFFE2_TRUNK,
    efficientnet_lite.DEEPER,
    efficientnet_lite.LITE0,
)
OWN_MODEL = Layout(
    title="this package's Mask R-CNN",
    told_by="proposals.objectness.weight",
    their_name=lambda ours: ours,
)
OWN_SEMANTIC = Layout(
    title="this package's DeepLabV3+",
    told_by="pyramid.branches.0.0.weight",
    their_name=lambda ours: ours,
)
MODELS = (OWN_MODEL, torchvision.MASK_RCNN, detectron2.MASK_RCNN, OWN_SEMANTIC)
_FEW_NAMES = 5


def load_trunk(trunk: nn.Module, config: BackboneConfig, *, cut_off: Collection[str]) -> None:
    """Fill a timm trunk from the file `config.weights`.

    Args:
        trunk: With the names that timm gives, and batch norms as timm makes them.
        config: Of the backbone.
        cut_off: Names of the whole timm model, which a file may have and the trunk not.

    Raises:
        ValueError: the file cannot be read, has an unknown layout, does not fit the trunk, or
            would mean something else under this config; all that is wrong is said.
    """
    source, tensors = config.weights, read_weights(config.weights)
    own = trunk.state_dict()
    layout = _layout_of_trunk(tensors, own, config=config)
    if layout is TIMM_TRUNK:  # its names may differ from the trunk's in "." and "_"
        translated = Translated(tensors, [])
    else:
        translated = translate(layout, tensors, own=own)
    if layout is detectron2.CAFFE2_TRUNK:
        _raise_all(source, detectron2.caffe2_faults(tensors, config))
    copy_state(
        trunk,
        _as_rgb(translated.tensors, own, layout=layout, config=config),
        source=source,
        allowed_left_over=cut_off,
        strangers=translated.strangers,
    )


def load_model(model: nn.Module, config: MaskRCNNConfig | DeepLabConfig) -> None:
    """Fill a model from the file `config.weights`, but for the parts to leave out.

    Raises:
        ValueError: the file cannot be read, has an unknown layout, does not fit the model, or
            would mean something else under this config; all that is wrong is said.
    """
    source, tensors = config.weights, read_weights(config.weights)
    layout = _layout_of_model(tensors, source=source)
    own = model.state_dict()
    translated = translate(layout, tensors, own=own)
    if layout is detectron2.MASK_RCNN and isinstance(config, MaskRCNNConfig):
        order = _color_order(layout, config.backbone)
        _raise_all(source, detectron2.disagreements(tensors, config, color_order=order))
    copy_state(
        model,
        _as_rgb(translated.tensors, own, layout=layout, config=config.backbone),
        source=source,
        strangers=translated.strangers,
        leave_out=config.weights_leave_out,
        advise=_adviser(translated.tensors, config),
    )


def _layout_of_trunk(
    tensors: Mapping[str, Tensor], own: Iterable[str], *, config: BackboneConfig
) -> Layout:
    source = config.weights
    for layout in TRUNKS:
        if layout.told_by in tensors:
            if any(layout.their_name(key) is None for key in own):
                raise ValueError(
                    f"weights {source}: holds {layout.title}, and backbone.name {config.name} is "
                    "built of other parts. Take the trunk that was trained, as resnet50, resnet101 "
                    "or resnext101_32x8d."
                )
            return layout
    names = {plain_name(key) for key in own}
    if any(plain_name(name) in names for name in tensors):
        return TIMM_TRUNK
    for layout in MODELS:
        if layout.told_by in tensors:
            raise ValueError(
                f"weights {source}: holds {layout.title}, not a trunk alone. To start from it "
                f'type: --model.weights {source} --model.backbone.weights ""'
            )
    raise ValueError(
        f"weights {source}: holds none of the names that timm gives {config.name} "
        f"({_few(own)}), nor those of "
        + " or ".join(f"{each.title} ({each.told_by}, ...)" for each in TRUNKS)
        + f". It begins with {_few(tensors)}. Is it of another trunk? Other codes' files must be "
        "renamed first, to timm's names."
    )


def _layout_of_model(tensors: Mapping[str, Tensor], *, source: str) -> Layout:
    for layout in MODELS:
        if layout.told_by in tensors:
            return layout
    trunk = next((each for each in TRUNKS if each.told_by in tensors), None)
    raise ValueError(
        f"weights {source}: holds the names of no model that is known here: "
        + ", ".join(f"{each.title} ({each.told_by}, ...)" for each in MODELS)
        + f". It begins with {_few(tensors)}. "
        + (
            "Rename its tensors to the names of this package first."
            if trunk is None and "conv1.weight" not in tensors
            else f"A trunk alone starts with: --model.backbone.weights {source}"
        )
    )


def _color_order(layout: Layout, config: BackboneConfig) -> ColorOrder:
    order = config.weights_color_order
    return layout.color_order if order == "auto" else order


def _as_rgb(
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    layout: Layout,
    config: BackboneConfig,
) -> dict[str, Tensor]:
    """Flip the channels of the convolution that reads pixels, if it reads BGR."""
    if _color_order(layout, config) == "rgb":
        return dict(tensors)
    first = plain_name(next(key for key, value in own.items() if value.shape[1:2] == (3,)))
    return {
        name: value.flip(1) if plain_name(name) == first else value
        for name, value in tensors.items()
    }


def _adviser(
    tensors: Mapping[str, Tensor], config: MaskRCNNConfig | DeepLabConfig
) -> Callable[[Sequence[str]], str]:
    """What to type when a model does not fit, once the parts that do not fit are known."""

    def advise(parts: Sequence[str]) -> str:
        if any(part.startswith("backbone") for part in parts):
            return f"; the trunk here is {config.backbone.name}"
        scores = next((key for key in tensors if key.endswith(".scores.bias")), None)
        counts = ""
        if scores is not None and len(tensors[scores]) != config.num_classes + 1:
            theirs = len(tensors[scores]) - 1
            counts = f" (the file has {theirs} categories, the model {config.num_classes})"
        return (
            ", or start what does not fit at random and leave over what is not used: "
            f"--model.weights-leave-out {' '.join(parts)}{counts}"
        )

    return advise


def _raise_all(source: str, faults: list[str]) -> None:
    if faults:
        raise ValueError(f"weights {source}: " + "; ".join(faults) + ".")


def _few(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:_FEW_NAMES]) + (", ..." if len(first) > _FEW_NAMES else "")
