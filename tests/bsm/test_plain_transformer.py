"""Plain vision transformers as backbones: any image size, a pyramid, frozen quarters."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_patch_embed
from timm.models.vision_transformer import checkpoint_filter_fn

from bsm.backbone import FpnBackbone, build_backbone, extract_features
from bsm.backbone_layers import number_layers
from bsm.configs.shared import BackboneConfig, FpnBackboneConfig

VIT, EVA = "test_vit", "eva02_tiny_patch14_224"
"""Position embeddings and patches of 16 px; those, rotations, and patches of 14 px."""


def backbone(**fields) -> FpnBackbone:
    return FpnBackbone(FpnBackboneConfig(**({"freeze_at": 0, "fpn_channels": 8} | fields)))


def build(name: str, **fields) -> torch.nn.Module:
    return build_backbone(BackboneConfig(name=name, **fields), allow_plain=True)[0]


@pytest.mark.parametrize("name", [VIT, EVA])
def test_a_pyramid_of_any_image_size(name: str):
    model = backbone(name=name).eval()
    images = torch.randint(0, 255, (2, 3, 70, 100), dtype=torch.uint8)
    levels = model(images, torch.tensor([[70, 100], [60, 33]]))
    sides = [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    assert [tuple(level.shape) for level in levels] == [(2, 8, *side) for side in sides]


@pytest.mark.parametrize("name", [VIT, EVA, "vit_small_patch16_dinov3"])
def test_every_parameter_trains(name: str):
    with torch.device("meta"):
        model = backbone(name=name)
        levels = model(torch.empty(1, 3, 64, 64, dtype=torch.uint8), torch.empty(1, 2).long())
    sum(level.square().mean() for level in levels).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_positions_are_resized_as_timm_does_for_a_model_of_that_size():
    module = build(VIT, freeze_at=0)
    built_for_it = timm.create_model(VIT, img_size=(96, 256))
    state = checkpoint_filter_fn(module.model.state_dict(), built_for_it)
    built_for_it.load_state_dict(state, strict=False)
    pixels = torch.randn(1, 3, 96, 256)
    with torch.no_grad():
        ours = extract_features(module.eval(), pixels)
        tokens = built_for_it.eval().forward_intermediates(pixels, indices=1)
        theirs = tokens[1][-1]
    assert len(ours) == 1
    torch.testing.assert_close(ours[0], theirs)


def test_patches_of_14_px_become_patches_of_16_and_positions_stay():
    with torch.device("meta"):
        module = build("vit_small_patch14_dinov2", freeze_at=0)
    assert tuple(module.model.patch_embed.proj.weight.shape) == (384, 3, 16, 16)
    assert tuple(module.model.pos_embed.shape) == (1, 1 + (518 // 14) ** 2, 384)
    assert len(module.model.blocks) == 12


@pytest.mark.parametrize(
    ("freeze_at", "frozen"), [(0, 0), (1, 1), (2, 1 + 2), (3, 1 + 3), (4, 1 + 5), (5, 1 + 6)]
)
def test_quarters_of_the_blocks_are_frozen(freeze_at: int, frozen: int):
    module = build(VIT, freeze_at=freeze_at)
    layers = number_layers(module, name=VIT)
    assert max(layers.values()) == 6
    trained = {layers[key] for key, p in module.named_parameters() if p.requires_grad}
    assert trained == set(range(frozen, 7))


def test_weights_of_a_file(tmp_path):
    whole = timm.create_model(VIT)
    save_file(whole.state_dict(), tmp_path / "vit.safetensors")
    module = build(VIT, weights=str(tmp_path / "vit.safetensors"))
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_weights_of_a_file_with_other_patches(tmp_path):
    whole = timm.create_model(EVA)
    save_file(whole.state_dict(), tmp_path / "eva.safetensors")
    module = build(EVA, weights=str(tmp_path / "eva.safetensors"), freeze_at=0)
    state = module.model.state_dict()
    resized = resample_patch_embed(whole.patch_embed.proj.weight.detach(), (16, 16))
    torch.testing.assert_close(state["patch_embed.proj.weight"], resized)
    assert torch.equal(state["pos_embed"], whole.pos_embed)
    fc = "blocks.11.mlp.fc2.weight"
    assert torch.equal(state[fc], whole.state_dict()[fc])
    # It is what timm makes of the same weights when it loads them itself.
    ours = build(EVA, freeze_at=0)
    ours.load_state_dict(module.state_dict())
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(module.eval()(pixels)[0], ours.eval()(pixels)[0])


def test_other_models_and_transformers_of_one_size_are_refused():
    with pytest.raises(ValueError, match=r"plain vision transformer.*only instance models"):
        build_backbone(BackboneConfig(name=VIT))
    with pytest.raises(ValueError, match=r"beit_base_patch16_224.*does not take images of any"):
        build("beit_base_patch16_224")


def test_it_compiles_as_one_graph_for_all_sizes():
    torch._dynamo.reset()
    module = build(VIT, freeze_at=0).eval()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for size_hw in ((64, 96), (96, 64)):
        pixels = torch.randn(1, 3, *size_hw)
        assert torch.equal(compiled(pixels)[0], module(pixels)[0])
    torch._dynamo.reset()
