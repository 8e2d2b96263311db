import logging
import os
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from bsm.backbone import (
    FpnBackbone,
    build_backbone,
    extract_features,
    freeze,
)
from bsm.backbone_norms import InPlaceFrozenNorm
from bsm.configs.shared import FpnBackboneConfig
from tests.no_host_tensors import fake_gpu


def backbone(**fields) -> FpnBackbone:
    defaults = {"name": "resnet10t", "norm": "batch", "freeze_at": 0, "fpn_channels": 8}
    return FpnBackbone(FpnBackboneConfig(**(defaults | fields)))


SWIN = "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize(
    "name", ["resnet10t", "convnext_atto", "mobilenetv3_small_050", SWIN, "mambaout_femto"]
)
def test_levels_for_any_backbone_and_any_size(name: str):
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


def test_a_backbone_without_the_strides():
    with pytest.raises(ValueError, match=r"strides .*needs \[4, 8, 16, 32\]"):
        backbone(name="levit_128s")


@pytest.mark.parametrize("name", ["maxvit_tiny_tf_224", "coat_tiny"])
def test_a_backbone_of_one_image_size(name: str):
    with pytest.raises(ValueError, match=rf"{name}.* at 96 x 160 it fails with .*224|window"):
        backbone(name=name)


def test_swin_equals_timms_model_built_for_that_size():
    """Compare Swin at another image size with timm's model built for that size."""
    module, _ = build_backbone(FpnBackboneConfig(name=SWIN, freeze_at=0))
    built_for_it = timm.create_model(SWIN, features_only=True, img_size=(256, 352))
    built_for_it.load_state_dict(module.state_dict())
    pixels = torch.randn(1, 3, 256, 352)
    with torch.no_grad():
        ours = extract_features(module.eval(), pixels)
        theirs = built_for_it.eval()(pixels)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b.permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", [SWIN, "convnext_atto"])
def test_every_parameter_of_a_backbone_with_layer_norms_trains(name: str):
    """Norm "frozen" freezes batch norm statistics; layer norms have none and train."""
    with torch.device("meta"):
        model = backbone(name=name, norm="frozen")
        levels = model(torch.empty(1, 3, 64, 64, dtype=torch.uint8), torch.empty(1, 2).long())
    sum(level.square().mean() for level in levels).backward()
    lacking = [key for key, p in model.named_parameters() if p.grad is None]
    assert lacking == []
    assert sum(isinstance(m, nn.LayerNorm) for m in model.modules()) > 8


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet50", 23_508_032),
        ("resnet101", 42_500_160),
        ("resnext101_32x8d", 86_742_336),
        ("resnext101_64x4d", 81_406_272),
    ],
)
def test_the_papers_backbones(name: str, parameters: int):
    """They have torchvision's parameters without the classifier; stem and res2 are frozen."""
    with fake_gpu(), torch.device("cuda"):
        model = backbone(name=name, norm="frozen", freeze_at=2)
        levels = model(torch.empty(1, 3, 96, 160, dtype=torch.uint8), torch.empty(1, 2).long())
    assert [tuple(x.shape) for x in levels][3:] == [(1, 8, 3, 5), (1, 8, 2, 3)]
    assert {x.device.type for x in levels} == {"cuda"}
    state = {k: v.numel() for k, v in model.trunk.state_dict().items() if "running" not in k}
    assert sum(state.values()) == parameters
    trained = {k.split(".")[0] for k, p in model.trunk.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    with torch.device("meta"):
        whole = getattr(torchvision.models, name)()
    assert (
        sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in whole.fc.parameters())
        == parameters
    )


def test_strides_in_the_1x1():
    model = backbone(name="resnet26", stride_in_1x1=True)
    stepping = [n for n, m in model.trunk.named_modules() if getattr(m, "stride", 1) == (2, 2)]
    blocks = [f"layer{i}.0.{part}" for i in (2, 3, 4) for part in ("conv1", "downsample.0")]
    assert stepping == ["conv1", *blocks]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # timm initializes the last ones with 0
    other = backbone(name="resnet26")
    other.load_state_dict(model.state_dict())
    images, size = torch.randint(0, 255, (1, 3, 64, 96)).byte(), torch.tensor([[64, 96]])
    for a, b in zip(model.eval()(images, size), other.eval()(images, size), strict=True):
        assert a.shape == b.shape
        assert not torch.allclose(a, b)
    # Pixels that the first convolution of a block skips reach no later layer.
    block, x = model.trunk.layer2[0], torch.rand(1, 256, 8, 8)
    dropped = x.clone()
    dropped[:, :, 1::2] = dropped[:, :, :, 1::2] = 7.0
    assert torch.equal(block(x), block(dropped))
    assert not torch.equal(other.trunk.layer2[0](x), other.trunk.layer2[0](dropped))


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_strides_are_moved_in_bottlenecks_only(name: str):
    with pytest.raises(ValueError, match=r"no plain bottlenecks.*--model\.backbone\.no-stride"):
        backbone(name=name, stride_in_1x1=True)


def test_contradictory_configs_raise():
    with pytest.raises(ValueError, match="convnext_atto has none"):
        backbone(name="convnext_atto", norm_eps=0.0)
    with pytest.raises(ValueError, match=r"norm_eps: .*group.*; stride_in_1x1"):
        FpnBackboneConfig(norm="group", norm_eps=0.0, weights="timm", stride_in_1x1=True)


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
    batch(images, sizes)  # statistics other than 0 and 1
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
        ("convnext_atto", 1, {"stages_0", "stages_1", "stages_2", "stages_3"}),
        ("convnext_atto", 2, {"stages_1", "stages_2", "stages_3"}),
        (SWIN, 1, {"layers_0", "layers_1", "layers_2", "layers_3"}),
        (SWIN, 3, {"layers_2", "layers_3"}),
        ("resnext50_32x4d", 2, {"layer2", "layer3", "layer4"}),
        ("mobilenetv3_small_050", 2, {"blocks"}),
    ],
)
def test_freeze_at(name: str, freeze_at: int, trained: set):
    with torch.device("meta"):
        model = backbone(name=name, freeze_at=freeze_at)
    assert {
        n.split(".")[0] for n, p in model.trunk.named_parameters() if p.requires_grad
    } == trained
    # Norms of frozen parts freeze their statistics too; all others train.
    for module_name, module in model.trunk.named_modules():
        if module_name.split(".")[0] in trained:
            assert not isinstance(module, FrozenBatchNorm2d)
        else:
            assert not isinstance(module, nn.BatchNorm2d)


def test_freezing_needs_the_module_that_timm_names():
    with pytest.raises(ValueError, match=r"'block\.0'.*--model\.backbone\.freeze-at 0"):
        backbone(name="mvitv2_tiny", freeze_at=2)


def test_a_part_ends_where_its_name_ends():
    """The module stages.1 is not stages.10."""
    module = nn.Sequential()
    for i in range(11):
        module.add_module(f"stages_{i}", nn.Conv2d(1, 1, 1))
    freeze(module, stages=[{"module": "stages.1"}], freeze_at=2)
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    assert frozen == [f"stages_{i}.{part}" for i in (0, 1) for part in ("weight", "bias")]


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", SWIN])
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


def test_weights_of_another_backbone_raise_with_their_keys(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(ValueError, match="do not fit") as error:
        backbone(weights=str(path))
    assert "layer1.1.conv1.weight" in str(error.value)
    assert "fc.weight" not in str(error.value)


def test_an_unreachable_hub_raises_with_the_alternatives(tmp_path):
    program = (
        "from bsm.backbone import build_backbone\n"
        "from bsm.configs.shared import FpnBackboneConfig\n"
        "try:\n"
        "    build_backbone(FpnBackboneConfig(name='resnet18', weights='timm'))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert "resnet18" in printed
    assert "--model.backbone.weights" in printed


def test_retries_of_a_download_are_no_lines_of_the_log(monkeypatch, caplog):
    create = timm.create_model

    def fail(*arguments, pretrained=False, **options):
        if not pretrained:
            return create(*arguments, **options)
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("Name or service not known")

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(ValueError, match="cannot download the weights of resnet18"):
        build_backbone(FpnBackboneConfig(name="resnet18", weights="timm"))
    assert not caplog.records


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "resnext50_32x4d"])
def test_norms_in_place_change_no_bit(name: str, monkeypatch):
    torch.manual_seed(0)
    images = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    sizes = torch.tensor([[64, 64]])
    fast = backbone(name=name, norm="frozen").train()
    with torch.no_grad():
        for key, value in fast.named_buffers():
            if key.endswith(("running_var", "running_mean")):
                value.uniform_(0.5, 1.5)
    monkeypatch.setattr("bsm.backbone.apply_norms_in_place", lambda _: None)
    plain = backbone(name=name, norm="frozen").train()
    plain.load_state_dict(fast.state_dict())
    assert sum(isinstance(m, InPlaceFrozenNorm) for m in fast.modules()) > 8
    assert not any(isinstance(m, InPlaceFrozenNorm) for m in plain.modules())
    for model in (fast, plain):
        torch.stack([level.square().mean() for level in model(images, sizes)]).sum().backward()
    for a, b in zip(fast(images, sizes), plain(images, sizes), strict=True):
        assert torch.equal(a, b)
    for (key, a), (_, b) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key
