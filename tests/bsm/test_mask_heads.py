import pytest
import torch

from bsm.config import MaskHeadConfig, SqueezeConfig
from bsm.instance.mask_heads.plain import MaskPredictor, PlainMaskHead
from bsm.instance.mask_heads.squeeze import SqueezeMaskHead

TRAIN_ONLY = ("boundary.", "contraction.", "expansion.")


def count(module, *, only=lambda name: True) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if only(name))


def test_parameter_counts_are_the_published_ones():
    plain = PlainMaskHead(256, num_classes=80, config=MaskHeadConfig(kind="plain"))
    assert count(plain) == 2_643_280
    head = SqueezeMaskHead(256, num_classes=80, config=MaskHeadConfig())
    train_only = count(head, only=lambda name: name.startswith(TRAIN_ONLY))
    assert train_only == 3 * (262_400 + 20_560)
    assert round((count(head) - train_only) / 1e6, 3) == 7.447


def test_inference_does_not_run_what_only_the_losses_use():
    head = SqueezeMaskHead(8, num_classes=5, config=MaskHeadConfig(channels=8, num_convs=1))
    ran = []
    for name, module in head.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    features, fine = torch.randn(3, 8, 14, 14), torch.randn(3, 8, 28, 28)
    category = torch.tensor([0, 4, 2])
    masks = head.masks(features, fine, category)
    assert [name for name in ran if f"{name}.".startswith(TRAIN_ONLY)] == []
    assert "mask.deconv" in ran
    ran.clear()
    logits = head(features, fine, category)
    assert {"boundary.deconv", "contraction.deconv", "expansion.deconv"} <= set(ran)
    assert torch.equal(masks, logits.mask)


def test_the_predictor_draws_the_map_of_the_category():
    torch.manual_seed(0)
    predictor = MaskPredictor(6, num_classes=4)
    torch.nn.init.normal_(predictor.logits.bias)
    features, category = torch.randn(5, 6, 7, 7), torch.tensor([3, 0, 1, 1, 2])
    every = predictor.logits(torch.relu(predictor.deconv(features)))
    expected = every[torch.arange(5), category]
    drawn = predictor(features, category)
    assert torch.allclose(drawn, expected, atol=1e-5)
    weight = torch.randn_like(drawn)
    got = torch.autograd.grad((drawn * weight).sum(), list(predictor.parameters()))
    want = torch.autograd.grad((expected * weight).sum(), list(predictor.parameters()))
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "squeeze"])
def test_no_convolutions_and_other_widths(kind: str):
    category = torch.tensor([0, 1])
    for num_convs, channels in ((0, 12), (2, 6)):
        config = MaskHeadConfig(kind=kind, num_convs=num_convs, channels=channels)
        features, fine = torch.randn(2, 10, 14, 14), torch.randn(2, 10, 28, 28)
        if kind == "plain":
            head = PlainMaskHead(10, num_classes=2, config=config)
            assert head(features, category).shape == (2, 28, 28)
        else:
            squeeze = SqueezeMaskHead(10, num_classes=2, config=config)
            assert squeeze.masks(features, fine, category).shape == (2, 28, 28)


def test_init_values():
    torch.manual_seed(0)
    head = SqueezeMaskHead(256, num_classes=80, config=MaskHeadConfig())
    assert abs(head.mask.logits.weight.std().item() - 0.001) < 5e-5
    assert abs(head.convs[0].weight.std().item() - (2 / (256 * 9)) ** 0.5) < 1e-3
    released = SqueezeMaskHead(
        256,
        num_classes=80,
        config=MaskHeadConfig(squeeze=SqueezeConfig(initialization="released")),
    )
    # torch's default for the two layers that the released code forgets: uniform, fan 256 * 4.
    bound = (1 / (256 * 4)) ** 0.5
    assert released.contraction.deconv.weight.abs().max() <= bound
    assert released.mask.deconv.weight.abs().max() > bound
