"""A dilated timm backbone keeps its resolution and the meaning of its weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.ops import FrozenBatchNorm2d

from bsm.configs.shared import BackboneConfig
from bsm.semantic.backbone import DilatedBackbone


def backbone(
    name: str = "resnet10t", *, output_stride: int = 8, dilate_first: bool = False, **fields
) -> DilatedBackbone:
    config = BackboneConfig(**({"name": name, "norm": "batch", "freeze_at": 0} | fields))
    return DilatedBackbone(config, output_stride=output_stride, dilate_first_blocks=dilate_first)


def find_dilations(model: DilatedBackbone) -> list[list[int]]:
    """Find the dilation of the 3 x 3 convolution of each block of each stage."""
    trunk = model.trunk
    stages = (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
    assert all(b.conv2.padding == b.conv2.dilation for stage in stages for b in stage)
    return [[block.conv2.dilation[0] for block in stage] for stage in stages]


@pytest.mark.parametrize(
    "name",
    ["resnet18d", "convnext_atto", "mobilenetv3_small_050", "regnetx_002", "seresnext26d_32x4d"],
)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_features_of_any_backbone_at_any_size(name: str, output_stride: int):
    model = backbone(name, output_stride=output_stride).eval()
    images = torch.randint(0, 255, (2, 3, 50, 67), dtype=torch.uint8)
    features = model(images, torch.tensor([[50, 67], [44, 33]]))
    height, width = (-(-side // output_stride) * output_stride for side in (50, 67))
    strides = (4, 8, output_stride, output_stride)
    assert [tuple(x.shape[1:]) for x in features] == [
        (channels, height // stride, width // stride)
        for channels, stride in zip(model.channels, strides, strict=True)
    ]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_feature_contains_the_undilated_one(output_stride: int):
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    model = backbone("resnet18", output_stride=output_stride).eval()
    model.trunk.load_state_dict(plain.state_dict())
    pixels = torch.randn(1, 3, 64, 96)
    for ours, original in zip(model.trunk(pixels), plain(pixels), strict=True):
        finer = ours.shape[-1] // original.shape[-1]
        assert torch.allclose(ours[..., ::finer, ::finer], original, atol=1e-4)


@pytest.mark.parametrize(
    ("output_stride", "first", "all_equal"),
    [
        (8, [[1, 1], [1, 1], [1, 2], [2, 4]], [[1, 1], [1, 1], [2, 2], [4, 4]]),
        (16, [[1, 1], [1, 1], [1, 1], [1, 2]], [[1, 1], [1, 1], [1, 1], [2, 2]]),
    ],
)
def test_first_blocks_are_dilated_as_timm_or_as_the_authors_do(output_stride, first, all_equal):
    timms = backbone("resnet26", output_stride=output_stride).eval()
    authors = backbone("resnet26", output_stride=output_stride, dilate_first=True).eval()
    assert find_dilations(timms) == first
    assert find_dilations(authors) == all_equal
    authors.load_state_dict(timms.state_dict())
    images, sizes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]])
    shapes = [[x.shape for x in model(images, sizes)] for model in (timms, authors)]
    assert shapes[0] == shapes[1]


def test_a_backbone_without_bottlenecks_cannot_dilate_its_first_blocks():
    with pytest.raises(ValueError, match=r"resnet18 has no .*--model\.no-dilate-first-blocks"):
        backbone("resnet18", dilate_first=True)


def test_resnet50s_has_the_stem_of_the_authors():
    with torch.device("meta"):
        stem = timm.create_model("resnet50s").conv1
    convs = [module for module in stem if isinstance(module, torch.nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.stride) for c in convs] == [
        (64, (3, 3), (2, 2)),
        (64, (3, 3), (1, 1)),
        (128, (3, 3), (1, 1)),
    ]


@pytest.mark.parametrize("name", ["densenet121", "dla34", "fastvit_t8"])
def test_a_backbone_that_cannot_be_dilated_raises_with_some_that_can(name: str):
    with pytest.raises(ValueError, match=rf"'{name}'.*output stride of 8.*resnet50"):
        backbone(name)


def test_padding_is_zero_after_normalization(monkeypatch):
    model, seen = backbone(), []
    monkeypatch.setattr(model.trunk, "forward", lambda pixels: seen.append(pixels) or [])
    model(torch.zeros(1, 3, 41, 48, dtype=torch.uint8), torch.tensor([[41, 30]]))
    (pixels,) = seen
    assert pixels.shape == (1, 3, 48, 48)
    assert pixels[..., :41, :30].ne(0).all()
    assert not pixels[..., 41:, :].any()
    assert not pixels[..., 30:].any()


def test_weights_of_a_classifier_fit_a_dilated_backbone(tmp_path):
    whole = timm.create_model("resnet10t")
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    model = backbone(weights=str(tmp_path / "w.safetensors"), norm="frozen", freeze_at=2)
    assert torch.equal(model.trunk.layer4[0].conv1.weight, whole.layer4[0].conv1.weight)
    trained = {name.split(".")[0] for name, p in model.trunk.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert isinstance(model.trunk.layer4[0].bn1, FrozenBatchNorm2d)
