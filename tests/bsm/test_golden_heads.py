"""The losses of every mask head on fixed inputs, to five digits.

Weights, features and targets come from formulas, so the losses do not depend on random generators.
A change that changes them on purpose rewrites the file:

    python tests/bsm/test_golden_heads.py
"""

import json
from pathlib import Path

import pytest
import torch

from bsm.configs.instance import FineStagesConfig, MaskHeadConfig, PointRendConfig
from bsm.configs.shared import GuidedFlowConfig, SqueezeConfig, TargetConfig
from bsm.field import boxes_to_frames, mask_to_field
from bsm.instance.mask_heads.build import build_mask_head
from bsm.instance.roi_targets import MaskRois
from bsm.instance.tensors import Targets
from tests.bsm.synthetic import model_config

GOLDEN = Path(__file__).parents[1] / "golden" / "mask_heads.json"
SIZES = {"channels": 8, "num_convs": 1}
POINTS = PointRendConfig(coarse_hidden=16, num_points=20)
HEADS = {
    "plain": MaskHeadConfig(kind="plain", **SIZES),
    "bmask": MaskHeadConfig(kind="bmask", **SIZES),
    "pointrend": MaskHeadConfig(kind="pointrend", pointrend=POINTS, **SIZES),
    "squeeze": MaskHeadConfig(**SIZES),
    "squeeze_paper": MaskHeadConfig(
        squeeze=SqueezeConfig(variant="paper", fusion="minus", legacy_warp=True),
        targets=TargetConfig(kernel_size=7, unite_boundary=False),
        band_loss="weighted_bce_dice",
        **SIZES,
    ),
    "squeeze_dcnv2": MaskHeadConfig(squeeze=SqueezeConfig(warp="dcnv2"), **SIZES),
    "squeeze_dgmn": MaskHeadConfig(squeeze=SqueezeConfig(warp="dgmn"), **SIZES),
    "squeeze_guided": MaskHeadConfig(guided_flow=GuidedFlowConfig(weight=0.5), **SIZES),
    "light": MaskHeadConfig(
        squeeze=SqueezeConfig(variant="light", light_channels=4),
        guided_flow=GuidedFlowConfig(weight=0.5),
        **SIZES,
    ),
    "fine": MaskHeadConfig(
        fine_stages=FineStagesConfig(channels=(6, 4), large_channels=4, large_side_px=40),
        **SIZES,
    ),
}


def wave(*shape: int, phase: float) -> torch.Tensor:
    at = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.37 * at + 0.05 * at.sqrt() + phase).float().view(shape)


def fixed_inputs():
    """Make two images with a disk and a ring each, and boxes slightly off."""
    at = torch.arange(56) + 0.5
    radius = ((at[:, None] - 28) ** 2 + (at - 28) ** 2).sqrt()
    shapes = torch.stack([radius < 18, (radius > 9) & (radius < 19)])
    boxes = torch.tensor([[10.0, 12.0, 50.0, 44.0], [4.0, 4.0, 30.0, 58.0]])
    targets = Targets(
        boxes_xyxy=boxes.repeat(2, 1, 1),
        category_index=torch.tensor([[0, 2], [1, 0]]),
        valid=torch.ones(2, 2, dtype=torch.bool),
        squeeze_field=mask_to_field(shapes).repeat(2, 1, 1, 1),
        field_frame_xyxy=boxes_to_frames(boxes).repeat(2, 1, 1),
        sample_seed=torch.tensor([11, 12]),
    )
    rois = MaskRois(
        torch.cat([torch.tensor([[0.0], [0], [1], [1]]), boxes.repeat(2, 1) + 1.5], dim=1),
        targets.category_index.flatten(),
        torch.tensor([0, 1, 0, 1]),
        torch.tensor([1.0, 1, 1, 0]),
        torch.tensor([0, 1, 0, 1]),
    )
    pyramid = [wave(2, 6, 64 // s, 64 // s, phase=s) for s in (4, 8, 16, 32)]
    return pyramid, rois, targets


def losses_of(name: str) -> dict[str, float]:
    head = build_mask_head(model_config(6, mask_head=HEADS[name]))
    for index, parameter in enumerate(head.parameters()):
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.data = wave(*parameter.shape, phase=index) * (2.0 / fan_in) ** 0.5
    losses = head.losses(*fixed_inputs())
    return {key: round(loss.item(), 7) for key, loss in losses.items()}


@pytest.mark.parametrize("name", HEADS)
def test_losses_are_the_golden_ones(name: str):
    golden = json.loads(GOLDEN.read_text())
    assert losses_of(name) == pytest.approx(golden[name], abs=2e-5)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: losses_of(name) for name in HEADS}, indent=2) + "\n")
