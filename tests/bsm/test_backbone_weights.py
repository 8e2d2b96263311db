"""Backbones from files of torchvision, detectron2 and Caffe2, recognized by their names."""

import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from bsm.backbone import FpnBackbone, extract_features
from bsm.configs.shared import FpnBackboneConfig

MSRA = {"stride_in_1x1": True, "pixel_std": (1.0, 1.0, 1.0)}


def backbone(**fields) -> nn.Module:
    """Build a ResNet with bottlenecks like ResNet-50, but fewer of them."""
    defaults = {"name": "resnet26", "norm": "frozen", "fpn_channels": 8}
    return FpnBackbone(FpnBackboneConfig(**(defaults | fields))).trunk.eval()


def classifier(name: str = "resnet26", seed: int = 0) -> dict[str, Tensor]:
    """Make the state of timm's classifier with statistics other than 0 and 1."""
    torch.manual_seed(seed)
    state = timm.create_model(name).state_dict()
    return {
        key: torch.rand_like(value) + 0.5 if value.dim() == 1 else value
        for key, value in state.items()
        if "num_batches" not in key
    }


def to_detectron2_name(name: str) -> str:
    """Rename like detectron2's tool convert-torchvision-to-d2."""
    if "layer" not in name:
        name = "stem." + name
    for stage in (1, 2, 3, 4):
        name = name.replace(f"layer{stage}", f"res{stage + 1}")
    for conv in (1, 2, 3):
        name = name.replace(f"bn{conv}", f"conv{conv}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def to_caffe2_name(name: str) -> str:
    """Invert the renaming that detectron2 does when it reads a Caffe2 file."""
    if name.startswith("fc."):
        return {"fc.weight": "fc1000_w", "fc.bias": "fc1000_b"}[name]
    name = to_detectron2_name(name).replace("stem.conv1.norm", "res_conv1_bn")
    name = name.replace("stem.", "").replace("shortcut", "branch1")
    for conv, branch in (("conv1", "branch2a"), ("conv2", "branch2b"), ("conv3", "branch2c")):
        if name.startswith("res") and not name.startswith("res_"):
            name = name.replace(conv, branch)
    name = name.replace(".norm", "_bn").replace(".", "_")
    for ours, theirs in (("bn_weight", "bn_gamma"), ("bn_bias", "bn_beta"), ("_weight", "_w")):
        name = name.replace(ours, theirs)
    return name


def write_pickle(folder: Path, tensors: dict[str, Tensor], **extra: object) -> str:
    path = folder / "R-26.pkl"
    arrays = {name: value.numpy() for name, value in tensors.items()}
    path.write_bytes(pickle.dumps({"model": arrays, **extra} if extra else arrays, protocol=2))
    return str(path)


def write_caffe2_file(folder: Path, state: dict[str, Tensor], **changes: Tensor) -> str:
    tensors = {to_caffe2_name(key): value for key, value in state.items()}
    tensors["conv1_w"] = tensors["conv1_w"].flip(1)  # the file reads BGR
    return write_pickle(folder, tensors | {"conv1_b": torch.zeros(64)} | changes)


def assert_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    assert len(model.state_dict()) > 50
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d"])
def test_torchvisions_resnets_have_timms_names(name: str):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().state_dict()
        ours = timm.create_model(name).state_dict()
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}


@torch.no_grad()
def test_features_are_torchvisions(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.resnext50_32x4d().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    torch.save(theirs.state_dict(), tmp_path / "resnext50_32x4d-7cdf4587.pth")
    ours = backbone(name="resnext50_32x4d", weights=str(tmp_path / "resnext50_32x4d-7cdf4587.pth"))
    pixels = torch.randn(1, 3, 64, 96)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(pixels))))
    for feature, stage in zip(extract_features(ours, pixels), range(1, 5), strict=True):
        x = getattr(theirs, f"layer{stage}")(x)
        assert torch.allclose(feature, x, rtol=1e-3, atol=1e-3 * x.abs().max().item())


def test_names_in_these_tests_match_real_files():
    assert to_detectron2_name("bn1.running_var") == "stem.conv1.norm.running_var"
    assert to_detectron2_name("layer3.0.downsample.1.bias") == "res4.0.shortcut.norm.bias"
    assert to_detectron2_name("layer1.2.conv3.weight") == "res2.2.conv3.weight"
    assert to_caffe2_name("conv1.weight") == "conv1_w"
    assert to_caffe2_name("bn1.running_mean") == "res_conv1_bn_running_mean"
    assert to_caffe2_name("layer1.0.downsample.0.weight") == "res2_0_branch1_w"
    assert to_caffe2_name("layer1.0.downsample.1.running_var") == "res2_0_branch1_bn_running_var"
    assert to_caffe2_name("layer3.5.conv3.weight") == "res4_5_branch2c_w"
    assert to_caffe2_name("layer4.2.bn1.bias") == "res5_2_branch2a_bn_beta"


def test_a_backbone_that_detectron2_converted_from_torchvision(tmp_path):
    state = classifier()
    renamed = {to_detectron2_name(key): value for key, value in state.items()}
    path = write_pickle(tmp_path, renamed, __author__="torchvision", matching_heuristics=True)
    assert_state(backbone(weights=path), state)


def test_a_caffe2_backbone_reads_rgb_and_has_strides_in_the_1x1(tmp_path):
    state = classifier()
    model = backbone(weights=write_caffe2_file(tmp_path, state), **MSRA)
    assert_state(model, state)
    assert model.layer2[0].conv1.stride == (2, 2)


def test_all_config_conflicts_of_a_caffe2_backbone_are_listed(tmp_path):
    path = write_caffe2_file(tmp_path, classifier())
    with pytest.raises(ValueError, match="MSRA") as error:
        backbone(weights=path)
    for flag in ("--model.backbone.stride-in-1x1", "--model.backbone.pixel-std 1 1 1"):
        assert flag in str(error.value)


def test_a_caffe2_resnext_has_strides_in_the_3x3_and_folded_norms(tmp_path):
    """Like X-101-64x4d.pkl: a factor and a shift for each norm, and the momenta of training."""
    state = classifier("resnext50_32x4d")
    folded = {key: value for key, value in state.items() if "running" not in key}
    tensors = {
        to_caffe2_name(key).replace("bn_gamma", "bn_s").replace("bn_beta", "bn_b"): value
        for key, value in folded.items()
    }
    tensors["conv1_w"] = tensors["conv1_w"].flip(1)
    tensors |= {f"{key}_momentum": value for key, value in tensors.items()}
    path = write_pickle(tmp_path, tensors)
    with pytest.raises(ValueError, match=r"folded.*--model\.backbone\.norm frozen"):
        backbone(name="resnext50_32x4d", weights=path, norm="batch")
    with pytest.raises(ValueError, match=r"--model\.backbone\.no-stride-in-1x1"):
        backbone(name="resnext50_32x4d", weights=path, stride_in_1x1=True)
    model = backbone(name="resnext50_32x4d", weights=path)
    for key, value in folded.items():
        if not key.startswith("fc."):
            assert torch.equal(model.state_dict()[key], value), key
    x = torch.randn(2, 64, 5, 5)
    factor, shift = (folded[f"bn1.{part}"][:, None, None] for part in ("weight", "bias"))
    assert torch.allclose(model.bn1(x.clone()), x * factor + shift, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "order", "flipped"),
    [("timm", "auto", False), ("timm", "bgr", True), ("d2", "bgr", True), ("caffe2", "rgb", True)],
)
def test_the_color_order_can_be_set(tmp_path, layout: str, order: str, flipped: bool):
    state = classifier()
    if layout == "caffe2":
        path = write_caffe2_file(tmp_path, state)
    else:
        path = str(tmp_path / "w.safetensors")
        save_file(
            {to_detectron2_name(k) if layout == "d2" else k: v for k, v in state.items()}, path
        )
    fields = MSRA if layout == "caffe2" else {}
    model = backbone(weights=path, weights_color_order=order, **fields)
    expected = state["conv1.weight"].flip(1) if flipped else state["conv1.weight"]
    assert torch.equal(model.conv1.weight, expected)
    assert torch.equal(model.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


def test_every_difference_is_listed(tmp_path):
    state = {to_detectron2_name(key): value for key, value in classifier().items()}
    del state["res3.1.conv2.norm.running_var"]
    state["res4.0.shortcut.weight"] = torch.zeros(1)
    state["res6.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="do not fit") as error:
        backbone(weights=write_pickle(tmp_path, state, __author__="torchvision"))
    for part in (
        "1 missing: layer2.1.bn2.running_var;",
        "1 unexpected: res6.0.conv1.weight;",
        "1 of another shape: layer3.0.downsample.0.weight is (1,), the model has (1024, 512, 1, 1)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("names", "fields", "message"),
    [
        (["backbone.0.body.x", "head.y"], {}, "neither timm's names for resnet26"),
        (["res2.0.conv1.weight"], {"name": "convnext_atto"}, "convnext_atto has other"),
        (["res2_0_branch2a_w"], {"name": "resnet26d"}, "resnet26d has other parts"),
        (["roi_heads.box_head.fc6.weight"], {}, "torchvision's Mask R-CNN, not just a backbone"),
        (["proposal_generator.rpn_head.conv.weight"], {}, "--model.weights"),
    ],
)
def test_a_layout_that_does_not_fit_raises(tmp_path, names, fields, message: str):
    path = tmp_path / "w.safetensors"
    save_file({name: torch.zeros(1) for name in names}, path)
    with pytest.raises(ValueError, match=r"w\.safetensors") as error:
        backbone(weights=str(path), **fields)
    assert message in str(error.value)
    if "neither" in message:
        for known in ("conv1.weight", "res2.0.conv1.weight", "res2_0_branch2a_w", *names):
            assert known in str(error.value)
