"""The losses of every semantic head on fixed inputs, to five digits.

Weights, features and labels come from formulas, so the losses do not depend on random generators.
A change that changes them on purpose rewrites the file:

    python tests/bsm/semantic/test_golden_semantic.py
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from bsm.configs.semantic import CrossEntropyConfig, DeepLabConfig
from bsm.configs.shared import GuidedFlowConfig, SqueezeConfig
from bsm.semantic.decoder import Features, PlainHead
from bsm.semantic.field import VOID
from bsm.semantic.pointrend import PointRendHead
from bsm.semantic.squeeze import SqueezeHead
from tests.bsm.semantic.label_maps import targets_of, tiny_config

GOLDEN = Path(__file__).parents[2] / "golden" / "semantic_heads.json"


def of(kind: str, **fields) -> DeepLabConfig:
    config = tiny_config(kind=kind)
    return dataclasses.replace(config, head=dataclasses.replace(config.head, **fields))


CONFIGS = {
    "plain": of("plain"),
    "plain_ohem": of(
        "plain", cross_entropy=CrossEntropyConfig(kind="ohem", ohem_threshold=0.3, ohem_min_kept=50)
    ),
    "pointrend": of("pointrend"),
    "squeeze": of("squeeze"),
    "squeeze_paper": of("squeeze", squeeze=SqueezeConfig(variant="paper", norm="group")),
    "squeeze_guided": of("squeeze", guided_flow=GuidedFlowConfig(weight=0.5, reach=1.5)),
    "light": of("light"),
}
HEADS = {"plain": PlainHead, "pointrend": PointRendHead, "squeeze": SqueezeHead}


def wave(*shape: int, phase: float) -> torch.Tensor:
    at = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.37 * at + 0.05 * at.sqrt() + phase).float().view(shape)


def fixed_inputs():
    """Make two label maps with a disk, a stripe and a void corner, smaller than their features."""
    y, x = torch.meshgrid(torch.arange(45), torch.arange(53), indexing="ij")
    disk = (x - 20) ** 2 + (y - 18) ** 2 < 150
    label = torch.where(disk, 1, torch.where(x + 2 * y > 90, 2, 0)).to(torch.uint8)
    label = torch.stack([label, label.flip(1)])
    label[:, :7, :5] = VOID
    targets = targets_of(label)._replace(zoom=torch.tensor([1.0, 1.25]))
    low, context = wave(2, 6, 12, 14, phase=0.1), wave(2, 16, 6, 7, phase=0.2)
    return Features(low, context, torch.tensor([[45, 53], [45, 53]])), targets


def losses_of(name: str) -> dict[str, float]:
    config = CONFIGS[name]
    head = HEADS[config.head.kind](6, config=config)
    for index, parameter in enumerate(head.parameters()):
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.data = wave(*parameter.shape, phase=index) * (2.0 / fan_in) ** 0.5
    losses = head.losses(*fixed_inputs())
    return {key: round(loss.item(), 7) for key, loss in losses.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_are_the_golden_ones(name: str):
    golden = json.loads(GOLDEN.read_text())
    assert losses_of(name) == pytest.approx(golden[name], abs=2e-5)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: losses_of(name) for name in CONFIGS}, indent=2) + "\n")
