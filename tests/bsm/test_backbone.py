import os
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from bsm.backbone import Backbone
from bsm.config import BackboneConfig


def backbone(**fields) -> Backbone:
    defaults = {"name": "resnet10t", "norm": "batch", "freeze_at": 0, "fpn_channels": 8}
    return Backbone(BackboneConfig(**(defaults | fields)))


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "mobilenetv3_small_050"])
def test_levels_for_any_trunk_and_any_size(name: str):
    model = backbone(name=name).eval()
    images = torch.randint(0, 255, (2, 3, 70, 100), dtype=torch.uint8)
    levels = model(images, torch.tensor([[70, 100], [60, 33]]))
    assert [tuple(x.shape[1:]) for x in levels] == [
        (8, 24, 32),
        (8, 12, 16),
        (8, 6, 8),
        (8, 3, 4),
        (8, 2, 2),
    ]


def test_a_name_timm_does_not_know():
    with pytest.raises(ValueError, match=r"'resnet5O'.*resnet"):
        backbone(name="resnet5O")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_trunk_without_the_strides(name: str):
    with pytest.raises(ValueError, match=r"strides .*needs \[4, 8, 16, 32\]"):
        backbone(name=name)


def test_padding_is_zero_after_normalization():
    model = backbone()
    pixels = model.normalize(torch.zeros(1, 3, 40, 64, dtype=torch.uint8), torch.tensor([[40, 50]]))
    assert pixels.shape == (1, 3, 64, 64)
    expected = -torch.tensor([123.675, 116.28, 103.53]) / torch.tensor([58.395, 57.12, 57.375])
    assert torch.allclose(pixels[0, :, 39, 49], expected)
    assert pixels[0, :, 40:].eq(0).all()
    assert pixels[0, :, :, 50:].eq(0).all()


def test_fpn_is_detectron2s():
    model = backbone(fpn_channels=16)
    for layer in (*model.laterals, *model.outputs):
        fan_in = layer.weight[0].numel()
        assert layer.weight.abs().max() <= (3 / fan_in) ** 0.5  # c2_xavier_fill
        assert layer.bias.eq(0).all()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in (*model.laterals, *model.outputs))
    model.eval()
    levels = model(torch.randint(0, 255, (1, 3, 128, 128)).byte(), torch.tensor([[128, 128]]))
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_frozen_norms_keep_keys_and_outputs(name: str):
    torch.manual_seed(0)
    batch = backbone(name=name)
    batch.train()
    images = torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8)
    sizes = torch.tensor([[64, 64]] * 4)
    batch(images, sizes)  # statistics that are not 0 and 1
    frozen = backbone(name=name, norm="frozen")
    state = {k: v for k, v in batch.state_dict().items() if "num_batches" not in k}
    frozen.load_state_dict(state)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    batch.eval()
    for a, b in zip(batch(images, sizes), frozen(images, sizes), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    frozen.train()
    frozen(images, sizes)
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, before[key])


def test_group_and_sync_norms():
    group = backbone(norm="group")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in group.modules())
    assert any(isinstance(m, nn.GroupNorm) for m in group.modules())
    group(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]]))
    sync = backbone(norm="sync")
    norms = [m for m in sync.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)


@pytest.mark.parametrize(
    ("name", "freeze_at", "trained"),
    [
        ("resnet10t", 0, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        ("resnet10t", 1, {"layer1", "layer2", "layer3", "layer4"}),
        ("resnet10t", 2, {"layer2", "layer3", "layer4"}),
        ("resnet10t", 5, set()),
        ("convnext_atto", 2, {"stages_1", "stages_2", "stages_3"}),
    ],
)
def test_freeze_at(name: str, freeze_at: int, trained: set):
    model = backbone(name=name, freeze_at=freeze_at)
    assert {
        n.split(".")[0] for n, p in model.trunk.named_parameters() if p.requires_grad
    } == trained
    # Norms of frozen parts are frozen whole, statistics too; all others train.
    for module_name, module in model.trunk.named_modules():
        if module_name.split(".")[0] in trained:
            assert not isinstance(module, FrozenBatchNorm2d)
        else:
            assert not isinstance(module, nn.BatchNorm2d)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_weights_of_a_whole_classifier(tmp_path, name: str):
    whole = timm.create_model(name)
    path = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, path)
    model = backbone(name=name, weights=str(path), norm="frozen")
    given = {k.replace(".", "_"): v for k, v in whole.state_dict().items()}
    own = model.trunk.state_dict()
    assert len(own) > 20
    for key, value in own.items():
        assert torch.equal(value, given[key.replace(".", "_")]), key


def test_weights_of_another_trunk_are_refused_with_their_keys(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(ValueError, match="do not fit") as error:
        backbone(weights=str(path))
    assert "layer1.1.conv1.weight" in str(error.value)
    assert "fc.weight" not in str(error.value)


def test_pretrained_weights_out_of_reach_are_told_with_the_ways_on(tmp_path):
    program = (
        "from bsm.backbone import build_trunk\n"
        "from bsm.config import BackboneConfig\n"
        "try:\n"
        "    build_trunk(BackboneConfig(name='resnet18', weights='timm'))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "resnet18" in told
    assert "--model.backbone.weights" in told
