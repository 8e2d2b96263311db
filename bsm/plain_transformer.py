"""Plain vision transformers of timm as backbones: their options, and which blocks are frozen.

A plain transformer has one stride, that of its patches, and an embedding of their positions for the
size of image that it was trained with. timm resizes both: the patches to our stride once, when
weights are loaded, and the positions to each batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import nn

from bsm.backbone_layers import number_layers
from bsm.simple_pyramid import STRIDE

_QUARTERS = 4
"""freeze_at counts quarters of the blocks, as it counts the four stages of a ResNet."""


def is_plain(stages: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether all features have one stride, from timm's descriptions of them."""
    return len({stage["reduction"] for stage in stages}) == 1


def choose_options(name: str, *, stride: int) -> dict[str, Any]:
    """Return the options of timm that give a plain transformer our stride at any image size.

    Args:
        name: timm's name.
        stride: side of its patches.
    """
    options: dict[str, Any] = {"dynamic_img_size": True}
    if stride != STRIDE:
        # As many patches as before, so that only their pixels are resized, not the positions too.
        trained_with: Any = timm.get_pretrained_cfg(name)
        size_px = trained_with.input_size[-1] // stride * STRIDE
        options |= {"patch_size": STRIDE, "img_size": size_px}
    return options


def get_patch_sizes(options: Mapping[str, Any]) -> dict[str, int]:
    """Return the options that resize the patches; weights of a file are loaded without them."""
    return {key: options[key] for key in ("patch_size", "img_size") if key in options}


def build_probe(name: str, *, stride: int) -> tuple[Any, dict[str, Any]] | None:
    """Build a plain transformer without values, with its options; None if it has one image size."""
    options = choose_options(name, stride=stride)
    try:
        with torch.device("meta"):
            return timm.create_model(name, features_only=True, **options), options
    except TypeError:  # no such options
        return None


def freeze_blocks(trunk: nn.Module, *, name: str, freeze_at: int) -> None:
    """Freeze the embeddings of patches and positions (1), and quarters of the blocks (2 to 5)."""
    layers = number_layers(trunk, name=name)
    blocks = max(layers.values())
    last = -(-blocks * (freeze_at - 1) // _QUARTERS)
    for key, parameter in trunk.named_parameters():
        if freeze_at and layers[key] <= last:
            parameter.requires_grad = False
