"""A timm backbone, and a feature pyramid on top: an image becomes five levels, P2 to P6.

Any timm model works that gives features at strides 4 to 32, and any plain vision transformer; it is
probed on the meta device first, so that a model that does not fit is reported before any weights
are loaded.

N images, H, W image size, D channels of the pyramid
"""

import functools
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models._features import FeatureGetterNet
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from bsm.backbone_norms import apply_norms_in_place, convert_norm, freeze_norms
from bsm.checkpoints.load import load_backbone
from bsm.configs.shared import BackboneConfig, FpnBackboneConfig
from bsm.plain_transformer import build_probe, freeze_blocks, get_patch_sizes, is_plain
from bsm.simple_pyramid import STRIDE, SimplePyramid

STRIDES = (4, 8, 16, 32)
"""Of the backbone's features, which become P2 to P5."""
PAD_MULTIPLE = 32
"""Image sides are padded to a multiple of this, so each level is exactly twice the next."""
_PROBE_SIZE_HW = (96, 160)
"""An image size that no backbone was trained with, to test whether it takes any size."""


class FpnBackbone(nn.Module):
    """A timm backbone and an FPN (detectron2's: 3x3 outputs, no norm, P6 pooled from P5).

    A plain vision transformer has ViTDet's simple pyramid instead (bsm/simple_pyramid.py).
    """

    def __init__(self, config: FpnBackboneConfig) -> None:
        super().__init__()
        # The timm model, named "trunk" in checkpoints.
        self.trunk, stages = build_backbone(config, allow_plain=True)
        channels = [stage["num_chs"] for stage in stages]
        width = config.fpn_channels
        self.pyramid: SimplePyramid | None = None
        if is_plain(stages):
            self.pyramid = SimplePyramid(channels[0], width)
            channels = []
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        for layer in (*self.laterals, *self.outputs):
            nn.init.kaiming_uniform_(layer.weight, a=1)  # detectron2: c2_xavier_fill
            nn.init.zeros_(layer.bias)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std), persistent=False)

    def forward(self, images: Tensor, image_sizes_hw: Tensor) -> list[Tensor]:
        """Turn RGB images (N, 3, H, W) of 0 to 255, padded, into P2 to P6 (N, D, H / s, W / s)."""
        return self.merge(extract_features(self.trunk, self.normalize(images, image_sizes_hw)))

    def merge(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Merge the trunk's features (N, C, H / s, W / s), finest first, into P2 to P6."""
        levels = self._merge_stages(features) if self.pyramid is None else self.pyramid(features[0])
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]

    def _merge_stages(self, features: Sequence[Tensor]) -> list[Tensor]:
        merged = self.laterals[-1](features[-1])
        levels = [self.outputs[-1](merged)]
        for feature, lateral, output in zip(
            reversed(features[:-1]), self.laterals[-2::-1], self.outputs[-2::-1], strict=True
        ):
            merged = lateral(feature) + F.interpolate(merged, scale_factor=2.0, mode="nearest")
            levels.insert(0, output(merged))
        return levels

    def normalize(self, images: Tensor, image_sizes_hw: Tensor) -> Tensor:
        """Normalize pixels by mean and deviation; padding is 0 after that, not before."""
        return normalize_pixels(
            images, image_sizes_hw, self.pixel_mean, self.pixel_std, pad_multiple=PAD_MULTIPLE
        )


def normalize_pixels(
    images: Tensor, image_sizes_hw: Tensor, mean: Tensor, std: Tensor, *, pad_multiple: int
) -> Tensor:
    """Normalize pixels (N, 3, H, W) by mean (3,) and deviation (3,), then pad with 0."""
    mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    height, width = images.shape[-2:]
    inside = make_inside_mask(image_sizes_hw, (height, width)).unsqueeze(1)
    pixels = ((images - mean) / std) * inside
    pad = [-side % pad_multiple for side in (width, height)]
    return F.pad(pixels, (0, pad[0], 0, pad[1])) if any(pad) else pixels


def make_inside_mask(
    image_sizes_hw: Tensor, size_hw: tuple[int, int], *, stride: int = 1
) -> Tensor:
    """Mark the cells (N, h, w) of a batch's map that start inside their image (N, 2)."""
    height, width = size_hw
    rows = stride * torch.arange(height, device=image_sizes_hw.device)[:, None]
    columns = stride * torch.arange(width, device=image_sizes_hw.device)
    heights, widths = image_sizes_hw[:, :, None, None].unbind(1)
    return (rows < heights) & (columns < widths)


def build_backbone(
    config: BackboneConfig,
    *,
    output_stride: int = 32,
    dilate_first_blocks: bool = False,
    allow_plain: bool = False,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Build the timm model that a config names: its weights, its norms, its first parts frozen.

    Args:
        config: name, weights, norms and frozen parts.
        output_stride: the coarsest stride; below 32 the stages beyond it keep their resolution and
            dilate their kernels instead, with the same weights.
        dilate_first_blocks: dilate the first block of a stage like its others.
        allow_plain: also build plain vision transformers.

    Returns:
        A module for `extract_features`, with features at strides 4 to 32, none coarser than the
        output stride, and timm's description of each feature. A plain vision transformer has one
        feature, at stride 16.

    Raises:
        ValueError: timm does not know the name, the strides do not match, the model takes images of
            one size only or cannot be dilated, or the weights do not fit or cannot be downloaded.
    """
    stages, options = _find_stages(config.name)
    if is_plain(stages) and not allow_plain:
        raise ValueError(
            f"backbone.name {config.name!r}: is a plain vision transformer, with features at one "
            "stride; only instance models make a pyramid of them. This model needs features at "
            f"strides {list(STRIDES)}: use a backbone such as resnet50, convnext_tiny or "
            "swin_tiny_patch4_window7_224."
        )
    if output_stride < STRIDES[-1]:
        options = {**options, "output_stride": output_stride}
        _check_dilation(config.name, stages, output_stride=output_stride)
    is_file = config.weights not in {"", "timm"}
    sizes = get_patch_sizes(options) if is_file else {}
    backbone = _create_trunk(
        config, stages, {key: value for key, value in options.items() if key not in sizes}
    )
    if config.stride_in_1x1:
        _move_strides_to_1x1(backbone, name=config.name)
    if dilate_first_blocks:
        _dilate_first_blocks(backbone, name=config.name)
    if config.norm_eps is not None:
        _set_norm_eps(backbone, config.norm_eps, name=config.name)
    if is_file:
        _load_file(backbone, config, sizes=sizes)
    backbone = convert_norm(backbone, norm=config.norm)
    if is_plain(stages):
        freeze_blocks(backbone, name=config.name, freeze_at=config.freeze_at)
    else:
        freeze(backbone, stages=stages, freeze_at=config.freeze_at)
    apply_norms_in_place(backbone)
    return backbone, stages


def _create_trunk(
    config: BackboneConfig, stages: Sequence[dict[str, Any]], options: dict[str, Any]
) -> nn.Module:
    try:
        with _without_retry_lines():
            trunk: nn.Module = timm.create_model(
                config.name,
                features_only=True,
                out_indices=[stage["index"] for stage in stages],
                pretrained=config.weights == "timm",
                **options,
            )
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"backbone.weights 'timm': cannot download the weights of {config.name} "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}). If the hub cannot be "
            "reached, give a file: --model.backbone.weights FILE.safetensors, or start at random: "
            '--model.backbone.weights "" --model.backbone.norm group --model.backbone.freeze-at 0'
        ) from error
    return trunk


def _load_file(backbone: nn.Module, config: BackboneConfig, *, sizes: dict[str, int]) -> None:
    """Load the weights of a file, and resize the patches of a plain transformer to ours then."""
    with torch.device("meta"):
        whole: nn.Module = timm.create_model(config.name)
    inner: Any = backbone.model if isinstance(backbone, FeatureGetterNet) else backbone
    # timm cuts the classifier, among others, off the whole model.
    load_backbone(inner, config, cut_off=set(whole.state_dict()))
    if sizes:
        inner.set_input_size(**sizes)


def extract_features(backbone: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Extract features (N, C, H / s, W / s) from normalized pixels (N, 3, H, W), finest first."""
    features: list[Tensor] = backbone(pixels)
    if str(getattr(backbone, "output_fmt", "")).endswith("NHWC"):
        return [feature.permute(0, 3, 1, 2) for feature in features]
    return features


@contextmanager
def _without_retry_lines() -> Iterator[None]:
    """Leave out two lines for each retry of a download; its error says what failed."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@functools.cache
def _find_stages(name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Find the stages at our strides, and the timm options that allow images of any size."""
    probe, options = _build_probe(name)
    stages = probe.feature_info.get_dicts()
    strides = [stage["reduction"] for stage in stages]
    wanted = [
        {**stage, "index": i, "at": i}
        for i, stage in enumerate(stages)
        if stage["reduction"] in STRIDES
    ]
    if is_plain(stages) and strides[-1] == STRIDE:
        wanted = [{**stages[-1], "at": -1}]
    elif [stage["reduction"] for stage in wanted] != list(STRIDES):
        raise ValueError(
            f"backbone.name {name!r}: gives features at strides {strides}; the pyramid needs "
            f"{list(STRIDES)}. Use a backbone such as resnet50, convnext_tiny or "
            "swin_tiny_patch4_window7_224."
        )
    try:
        with torch.no_grad():
            features = extract_features(probe, torch.empty(1, 3, *_PROBE_SIZE_HW, device="meta"))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"backbone.name {name!r}: does not take images of any size: at "
            f"{_PROBE_SIZE_HW[0]} x {_PROBE_SIZE_HW[1]} it fails with "
            f"{str(error).splitlines()[0][:200]!r}. Use a convolutional backbone such as resnet50 "
            "or convnext_tiny, or one with free windows such as swin_tiny_patch4_window7_224."
        ) from error
    shapes = [tuple(features[stage["at"]].shape[1:]) for stage in wanted]
    described = [
        (stage["num_chs"], *(s // stage["reduction"] for s in _PROBE_SIZE_HW)) for stage in wanted
    ]
    if shapes != described:
        raise ValueError(
            f"backbone.name {name!r}: for an image of {_PROBE_SIZE_HW[0]} x {_PROBE_SIZE_HW[1]} it "
            f"gives features {shapes}, but timm describes them as {described}. Use another "
            "backbone."
        )
    return wanted, options


def _build_probe(name: str) -> tuple[Any, dict[str, Any]]:
    try:
        with torch.device("meta"):
            probe: Any = timm.create_model(name, features_only=True)
    except (RuntimeError, AttributeError, ValueError) as error:
        family = re.split(r"[._\d]", name)[0]
        similar = ", ".join(timm.list_models(f"*{family}*")[:5]) or "none"
        raise ValueError(
            f"backbone.name {name!r}: timm gives no features of it ({error}). Similar names: "
            f"{similar}. For all of them: python -c 'import timm; print(timm.list_models())'"
        ) from error
    stages = probe.feature_info.get_dicts()
    if is_plain(stages):
        return build_probe(name, stride=stages[-1]["reduction"]) or (probe, {})
    if not any(getattr(module, "strict_img_size", False) for module in probe.modules()):
        return probe, {}
    # Swin and similar: windows at any image size, shifted in the last stage too. On small training
    # images that stage is a single window, which timm would not shift. Swin's own detectors shift
    # it, and so does timm in a model built for large images.
    options: dict[str, Any] = {"dynamic_img_size": True, "always_partition": True}
    try:
        with torch.device("meta"):
            return timm.create_model(name, features_only=True, **options), options
    except TypeError:  # no such options: the caller tests whether it takes any size
        return probe, {}


def _move_strides_to_1x1(backbone: nn.Module, *, name: str) -> None:
    """Move the strides of bottlenecks from their 3 x 3 convolution to the 1 x 1 before it."""
    blocks = [module for module in backbone.modules() if isinstance(module, Bottleneck)]
    if not blocks or any(not isinstance(block.aa, nn.Identity) for block in blocks):
        raise ValueError(
            f"backbone.stride_in_1x1: {name} has no plain bottlenecks to move strides in; only "
            "ResNets such as resnet50 and resnet101 do. Type: --model.backbone.no-stride-in-1x1"
        )
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _dilate_first_blocks(backbone: nn.Module, *, name: str) -> None:
    """Dilate the first bottleneck of each stage like the second."""
    children = [m for m in backbone.children() if isinstance(m, nn.Sequential)]
    blocks = [[block for block in m if isinstance(block, Bottleneck)] for m in children]
    stages = [stage for stage in blocks if len(stage) > 1]
    if not stages:
        raise ValueError(
            f"dilate_first_blocks: {name} has no stages of several bottlenecks; ResNets such as "
            "resnet50 and resnet50s have. Type: --model.no-dilate-first-blocks"
        )
    for first, second, *_ in stages:
        first.conv2.dilation, first.conv2.padding = second.conv2.dilation, second.conv2.padding


def _set_norm_eps(backbone: nn.Module, eps: float, *, name: str) -> None:
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        raise ValueError(
            f"backbone.norm_eps {eps}: applies to batch norms, and {name} has none. Type: "
            "--model.backbone.norm-eps None"
        )
    for norm in norms:
        norm.eps = eps


def _check_dilation(name: str, stages: list[dict[str, Any]], *, output_stride: int) -> None:
    wanted = [min(stage["reduction"], output_stride) for stage in stages]
    try:
        with torch.device("meta"):
            probe: Any = timm.create_model(name, features_only=True, output_stride=output_stride)
        features = probe.feature_info.get_dicts()
        strides = [features[stage["index"]]["reduction"] for stage in stages]
    # timm has no list of the models that it can dilate: the others reject the argument, with
    # various errors.
    except (TypeError, AssertionError, ValueError, RuntimeError):
        strides = []
    if strides != wanted:
        raise ValueError(
            f"backbone.name {name!r}: timm cannot dilate it to an output stride of {output_stride}"
            f"{f' (strides {strides}, needed {wanted})' if strides else ''}. Use one that it can, "
            "such as resnet50, resnet50d, resnext101_64x4d, regnety_032, convnext_tiny or "
            "mobilenetv3_large_100."
        )


def freeze(backbone: nn.Module, *, stages: Sequence[dict[str, Any]], freeze_at: int) -> None:
    """Freeze the first parts of a backbone: 1 the stem, 2 the stem and the first stage, ...

    Their batch norms freeze their statistics too. A part ends at the module that timm takes its
    feature from, in the order in which the backbone registers its modules.

    Raises:
        ValueError: timm names a module that the backbone does not have.
    """
    if freeze_at == 0:
        return
    parameters = list(backbone.named_parameters())
    # timm flattens "stages.0" to "stages_0" where it cuts, or leaves the whole as "model".
    names = [name.removeprefix("model.").replace(".", "_") + "_" for name, _ in parameters]
    stage = str(stages[max(freeze_at - 2, 0)]["module"])
    end = stage.replace(".", "_") + "_"
    inside = [i for i, name in enumerate(names) if name.startswith(end)]
    if not inside:
        raise ValueError(
            f"backbone.freeze_at {freeze_at}: this backbone has no module {stage!r}, which timm "
            "names as the end of a part. Train all of it: --model.backbone.freeze-at 0"
        )
    count = inside[0] if freeze_at == 1 else inside[-1] + 1
    for _, parameter in parameters[:count]:
        parameter.requires_grad = False
    freeze_norms(backbone)
