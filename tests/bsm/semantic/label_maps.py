"""Small models, label maps and batches for the tests of the semantic model."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bsm.configs.semantic import (
    CrossEntropyConfig,
    DeepLabConfig,
    SemanticHeadConfig,
    SemanticLossWeights,
    SemanticPointRendConfig,
    SemanticTargetConfig,
)
from bsm.configs.shared import BackboneConfig, GuidedFlowConfig, SqueezeConfig
from bsm.semantic.field import VOID, SemanticTargets, label_to_field

KINDS = ("plain", "pointrend", "squeeze", "light", "guided")
"""Accepted by `tiny_config`."""


def tiny_config(
    *,
    kind: str = "squeeze",
    backbone: str = "test_resnet",
    norm: str = "batch",
    num_classes: int = 3,
    output_stride: int = 8,
    auxiliary: float = 0.0,
    cross_entropy: str = "plain",
    kernel_size: int = 7,
) -> DeepLabConfig:
    """Configure a small model; kind is a head, or "light" or "guided" for such a squeeze."""
    squeeze, guided = SqueezeConfig(norm="batch", mask_fusion=False), GuidedFlowConfig()
    if kind in {"light", "guided"}:
        guided = GuidedFlowConfig(weight=0.5)
        if kind == "light":
            squeeze = SqueezeConfig(variant="light", norm="batch", light_channels=8)
        kind = "squeeze"
    return DeepLabConfig(
        num_classes=num_classes,
        backbone=BackboneConfig(name=backbone, norm=norm, freeze_at=0),
        output_stride=output_stride,
        head=SemanticHeadConfig(
            kind=kind,
            aspp_rates=(1, 2),
            channels=16,
            low_level_channels=8,
            squeeze=squeeze,
            guided_flow=guided,
            pointrend=SemanticPointRendConfig(channels=16, num_points=64, subdivision_points=100),
            targets=SemanticTargetConfig(kernel_size=kernel_size),
            cross_entropy=CrossEntropyConfig(kind=cross_entropy, ohem_min_kept=500),
            loss_weights=SemanticLossWeights(auxiliary=auxiliary),
        ),
    )


def blobs(
    seed: int,
    *,
    num_classes: int = 3,
    size_hw: tuple[int, int] = (37, 45),
    coarseness: int = 6,
    void: float = 0.15,
    count: int = 1,
) -> Tensor:
    """Draw random label maps (count, H, W) of blobs, a share of them void."""
    generator = torch.Generator().manual_seed(seed)
    cells = [side // coarseness + 2 for side in size_hw]
    noise = torch.rand(count, num_classes + 1, *cells, generator=generator)
    heights = F.interpolate(noise, size=size_hw, mode="bilinear")
    label = heights[:, :num_classes].argmax(1).to(torch.uint8)
    bar = torch.quantile(heights[:, num_classes].flatten(), 1 - void)
    return torch.where(heights[:, num_classes] > bar, VOID, label) if void else label


def targets_of(label: Tensor, *, num_classes: int = 3, zoom: float = 1.0) -> SemanticTargets:
    field = label_to_field(label, num_classes=num_classes, farthest=40)
    seeds = torch.arange(len(label)) * 7919 + 5
    return SemanticTargets(label, *field, torch.full((len(label),), zoom), seeds)


@cache
def shapes_batch(num_images: int = 2, size_hw: tuple[int, int] = (64, 80), seed: int = 0):
    """Draw disks and rectangles on noise, with a void corner: images, sizes, targets."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size_hw
    images = torch.randint(0, 60, (num_images, 3, height, width), generator=generator)
    label = torch.zeros(num_images, height, width, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    for n in range(num_images):
        jitter = torch.rand(4, generator=generator) * 6
        disk = (x - 20 - jitter[0]) ** 2 + (y - 22 - jitter[1]) ** 2 < (11 + jitter[2]) ** 2
        box = (x > 42 + jitter[3]) & (x < 70) & (y > 30) & (y < 54 + jitter[0])
        for index, mask in ((1, disk), (2, box)):
            label[n][mask] = index
            images[n, index - 1][mask] = 230
        label[n, :6, -9:] = VOID
    sizes = torch.tensor([list(size_hw)] * num_images)
    return images.to(torch.uint8), sizes, targets_of(label)
