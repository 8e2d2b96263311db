import pytest
import torch

from bsm.backbone import build_backbone
from bsm.backbone_layers import describe_backbone, number_layers
from bsm.build import build_model
from bsm.configs.shared import BackboneConfig
from tests.bsm.semantic import label_maps

SWIN = "swin_tiny_patch4_window7_224"


@pytest.mark.parametrize(
    ("name", "layers", "stem", "last"),
    [
        ("resnet10t", 5, "conv1.0.weight", "layer4.0.conv1.weight"),
        ("convnext_atto", 13, "stem_0.weight", "stages_3.blocks.1.gamma"),
        (SWIN, 13, "patch_embed.proj.weight", "layers_3.blocks.1.attn.qkv.weight"),
        ("test_vit", 7, "model.pos_embed", "model.blocks.5.mlp.fc2.bias"),
    ],
)
def test_layers_from_the_stem_to_the_last_block(name: str, layers: int, stem: str, last: str):
    with torch.device("meta"):
        trunk, _ = build_backbone(BackboneConfig(name=name, norm="group"), allow_plain=True)
    numbers = number_layers(trunk, name=name)
    assert numbers.keys() == dict(trunk.named_parameters()).keys()
    assert set(numbers.values()) == set(range(layers))
    assert (numbers[stem], numbers[last]) == (0, layers - 1)


def test_a_whole_model_by_its_own_names():
    model = build_model(label_maps.tiny_config())
    found = describe_backbone(model)
    names = {name for name, _ in model.named_parameters() if name.startswith("backbone.trunk.")}
    assert found.keys() == names
    assert all(place.decays for place in found.values())


def test_tables_of_positions_do_not_decay():
    with torch.device("meta"):
        trunk, _ = build_backbone(BackboneConfig(name=SWIN))
    model = torch.nn.Module()
    model.trunk, model.config = trunk, label_maps.tiny_config()
    object.__setattr__(model.config, "backbone", BackboneConfig(name=SWIN))
    spared = {name for name, place in describe_backbone(model).items() if not place.decays}
    assert len(spared) == 12
    assert all(name.endswith("relative_position_bias_table") for name in spared)
