"""Small models and batches for the tests of the instance model."""

from functools import cache

import torch
from torch import Tensor

from bsm.configs.instance import (
    BoxHeadConfig,
    FineStagesConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    PointRendConfig,
    ProposalConfig,
)
from bsm.configs.shared import FpnBackboneConfig, GuidedFlowConfig, SqueezeConfig, TargetConfig
from bsm.field import boxes_to_frames, mask_to_field
from bsm.instance.tensors import Targets

FIELD_SIDE = 56

KINDS = ("plain", "bmask", "pointrend", "squeeze", "light", "guided", "fine")
"""Accepted by `tiny_config`."""


def tiny_config(
    *,
    kind: str = "squeeze",
    source: str = "field",
    backbone: str = "resnet10t",
    num_classes: int = 3,
    boxes: str = "single",
    train_on: str = "method",
) -> MaskRCNNConfig:
    """Configure a small detector.

    kind is a mask head, "light" or "guided" for a squeeze, or "fine" for a plain head with stages.
    """
    squeeze, guided, fine = SqueezeConfig(), GuidedFlowConfig(), FineStagesConfig()
    if kind == "fine":
        fine = FineStagesConfig(
            channels=(6, 4), large_channels=4, large_per_image=12, large_side_px=16
        )
        kind = "plain"
    if kind in {"light", "guided"}:
        squeeze = SqueezeConfig(
            variant="light" if kind == "light" else "released", light_channels=8
        )
        guided = GuidedFlowConfig(weight=0.5)
        kind = "squeeze"
    return MaskRCNNConfig(
        num_classes=num_classes,
        backbone=FpnBackboneConfig(name=backbone, norm="batch", freeze_at=0, fpn_channels=16),
        proposals=ProposalConfig(
            anchor_sizes_px=(16.0, 32.0, 64.0, 128.0, 256.0),
            top_k_before_nms_train=100,
            top_k_before_nms_test=100,
            top_k_after_nms=60,
        ),
        box_head=BoxHeadConfig(
            kind=boxes,
            hidden=32,
            samples_per_image=32,
            positive_fraction=0.5,
            detections_per_image=10,
        ),
        mask_head=MaskHeadConfig(
            kind=kind,
            channels=16,
            num_convs=1,
            squeeze=squeeze,
            guided_flow=guided,
            fine_stages=fine,
            train_on=train_on,
            pointrend=PointRendConfig(
                coarse_hidden=32, num_points=24, start_side=7, subdivisions=2, subdivision_points=40
            ),
            targets=TargetConfig(source=source),
        ),
    )


def model_config(channels: int, *, num_classes: int = 3, **parts) -> MaskRCNNConfig:
    """Configure a detector whose heads read features of `channels`."""
    backbone = FpnBackboneConfig(fpn_channels=channels)
    return MaskRCNNConfig(num_classes=num_classes, backbone=backbone, **parts)


@cache
def shapes_batch(num_images: int = 2, num_slots: int = 3, side: int = 64, seed: int = 0):
    """Draw disks and rectangles on noise, with exact masks: images, sizes, targets."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (num_images, 3, side, side), generator=generator).to(torch.uint8)
    masks = torch.zeros(num_images, num_slots, side, side, dtype=torch.uint8)
    boxes = torch.zeros(num_images, num_slots, 4)
    category = torch.zeros(num_images, num_slots, dtype=torch.int64)
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    for n in range(num_images):
        for t in range(num_slots):
            # Each object in a quadrant of its own.
            half = side / 2
            cx = half * (t % 2) + half / 2 + torch.rand((), generator=generator) * 4 - 2
            cy = half * (t // 2) + half / 2 + torch.rand((), generator=generator) * 4 - 2
            radius = side / 8 + torch.rand((), generator=generator) * side / 12
            disk = (t + n) % 2 == 0
            dx, dy = (x - cx).abs(), (y - cy).abs()
            mask = dx**2 + dy**2 < radius**2 if disk else (dx < radius) & (dy < 0.7 * radius)
            masks[n, t] = mask.to(torch.uint8)
            images[n, 0 if disk else 1][mask] = 230
            images[n, 2][mask] = 120
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            boxes[n, t] = torch.stack(
                (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            ).float()
            category[n, t] = 0 if disk else 1
    sizes = torch.tensor([[side, side]] * num_images)
    return images, sizes, targets_from(masks, boxes, category)


def targets_from(masks: Tensor, boxes: Tensor, category: Tensor, seeds=None) -> Targets:
    """Make targets whose squeeze field samples the exact masks by nearest pixel."""
    n, t, height, width = masks.shape
    frame = boxes_to_frames(boxes)
    step = (torch.arange(FIELD_SIDE) + 0.5) / FIELD_SIDE
    x0, y0, x1, y1 = frame.unbind(-1)
    columns = (x0[..., None] + step * (x1 - x0)[..., None]).floor().long()
    rows = (y0[..., None] + step * (y1 - y0)[..., None]).floor().long()
    inside = ((rows >= 0) & (rows < height))[..., None] & (columns >= 0)[:, :, None]
    inside &= (columns < width)[:, :, None]
    image, slot = torch.meshgrid(torch.arange(n), torch.arange(t), indexing="ij")
    cut = masks[
        image[..., None, None],
        slot[..., None, None],
        rows.clamp(0, height - 1)[..., None],
        columns.clamp(0, width - 1)[:, :, None],
    ]
    field = mask_to_field(((cut > 0) & inside).flatten(0, 1)).view(n, t, FIELD_SIDE, FIELD_SIDE)
    return Targets(
        boxes_xyxy=boxes,
        category_index=category,
        valid=torch.ones(n, t, dtype=torch.bool),
        squeeze_field=field,
        field_frame_xyxy=frame,
        sample_seed=torch.arange(n) * 7919 + 5 if seeds is None else seeds,
        masks=masks,
        mask_scale_xy=torch.ones(n, t, 2),
    )
