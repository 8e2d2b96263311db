import pytest
import torch

from bsm.build import SkipRandomInit, build_model
from bsm.checkpoints.weights import load_weights, save_weights
from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig
from bsm.configs.semantic import DeepLabConfig
from bsm.configs.shared import BackboneConfig, FpnBackboneConfig

INSTANCE = MaskRCNNConfig(
    num_classes=3,
    backbone=FpnBackboneConfig(name="resnet18", weights="", fpn_channels=16, freeze_at=2),
    box_head=BoxHeadConfig(hidden=32),
    mask_head=MaskHeadConfig(channels=16, num_convs=1),
)
SEMANTIC = DeepLabConfig(num_classes=3, backbone=BackboneConfig(name="resnet18", weights=""))


def read_state(model):
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    return {name: (t, t.requires_grad) for name, t in tensors.items()} | {
        name: (t.detach(), t.requires_grad) for name, t in model.named_parameters()
    }


@pytest.mark.parametrize("config", [INSTANCE, SEMANTIC], ids=["instance", "semantic"])
def test_a_loaded_model_does_not_need_random_weights(config, tmp_path):
    """Buffers that no file has, such as the pixel mean, are there too."""
    file = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    model = build_model(config)
    save_weights(model, file)
    before = torch.get_rng_state()
    with SkipRandomInit():
        loaded = build_model(config)
    assert torch.equal(torch.get_rng_state(), before), "random numbers were drawn"
    load_weights(loaded, file)
    expected, found = read_state(model), read_state(loaded)
    assert expected.keys() == found.keys()
    for name, (tensor, is_trained) in expected.items():
        assert torch.equal(found[name][0], tensor), name
        assert found[name][1] == is_trained, name
