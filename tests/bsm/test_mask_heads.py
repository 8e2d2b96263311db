import copy
import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bsm.configs.instance import MaskHeadConfig
from bsm.configs.shared import SqueezeConfig
from bsm.instance.mask_heads.build import build_mask_head
from bsm.instance.mask_heads.layers import MaskPredictor
from bsm.instance.mask_heads.plain import PlainMaskHead
from tests.bsm.synthetic import model_config

TRAIN_ONLY = ("boundary.", "contraction.", "expansion.")

HEADS = {
    "plain": MaskHeadConfig(kind="plain"),
    "bmask": MaskHeadConfig(kind="bmask"),
    "squeeze": MaskHeadConfig(),
    "paper": MaskHeadConfig(squeeze=SqueezeConfig(variant="paper")),
    "light": MaskHeadConfig(squeeze=SqueezeConfig(variant="light")),
    "pointrend": MaskHeadConfig(kind="pointrend"),
}


def head_of(name: str, *, in_channels: int = 256, num_classes: int = 80, **options):
    config = dataclasses.replace(HEADS[name], **options)
    return build_mask_head(model_config(in_channels, num_classes=num_classes, mask_head=config))


def small(name: str):
    torch.manual_seed(0)
    squeeze = dataclasses.replace(HEADS[name].squeeze, light_channels=4)
    return head_of(name, in_channels=8, num_classes=5, channels=8, num_convs=1, squeeze=squeeze)


def make_inputs(rois: int, channels: int, *, name: str):
    """Make the inputs of a mask function: pooled features and categories."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rois, channels, 14, 14, generator=generator)
    fine = torch.randn(rois, channels, 28, 28, generator=generator)
    category = torch.arange(rois) % 5
    return (features, category) if name == "plain" else (features, fine, category)


def get_mask_function(head):
    """Return the function that inference runs on pooled features."""
    return head if isinstance(head, PlainMaskHead) else head.forward_mask


def count(module, *, only=lambda name: True) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if only(name))


def in_use(name: str) -> bool:
    return not name.startswith(TRAIN_ONLY)


@pytest.mark.parametrize(
    ("name", "used", "train_only"),  # millions
    [
        ("plain", 2.643, 0),
        ("bmask", 5.135, 0.283),
        ("squeeze", 7.447, 0.849),
        ("paper", 5.154, 0.849),
        ("pointrend", 18.176 + 0.286, 0),
    ],
)
def test_parameter_counts_match_the_originals(name, used, train_only):
    head = head_of(name)
    assert count(head, only=in_use) / 1e6 == pytest.approx(used, abs=6e-4)
    assert (count(head) - count(head, only=in_use)) / 1e6 == pytest.approx(train_only, abs=6e-4)


def gmac(name: str) -> float:
    """Count the GMAC of one RoI in inference."""
    with torch.device("meta"):
        head = head_of(name)
        arguments = [torch.empty(1, 256, 14, 14), torch.empty(1, 256, 28, 28)]
        category = torch.zeros(1, dtype=torch.int64)
        if name == "plain":
            arguments = arguments[:1]
        with FlopCounterMode(display=False) as counter:
            get_mask_function(head)(*arguments, category)
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ("name", "expected"), [("plain", 0.530), ("bmask", 1.018), ("squeeze", 1.471), ("paper", 1.022)]
)
def test_work_per_roi_matches_the_originals(name: str, expected: float):
    # Only one category's map is computed here, not all 80.
    every_category = 79 * 256 * 28 * 28 / 1e9
    assert gmac(name) + every_category == pytest.approx(expected, abs=2e-3)


def test_light_is_light():
    assert gmac("light") <= 0.65
    assert count(head_of("light"), only=in_use) <= 3_100_000


def test_pointrend_predicts_few_points_again():
    head, calls = head_of("pointrend", in_channels=8, num_classes=3), []
    head.point.register_forward_hook(lambda _, __, out: calls.append(tuple(out.shape)))
    pyramid = [torch.randn(1, 8, 64 // s, 64 // s) for s in (1, 2, 4, 8)]
    rois = torch.tensor([[0.0, 10, 20, 90, 120], [0.0, 0, 0, 30, 30]])
    masks = head.eval().predict(pyramid, rois, torch.tensor([1, 2]))
    assert masks.shape == (2, 224, 224)
    assert calls == [(2, 784)] * 4  # 28 x 28, and three times after a doubling


@pytest.mark.parametrize("name", ["bmask", "squeeze", "paper", "light"])
def test_inference_does_not_run_training_only_parts(name: str):
    head = small(name)
    ran = []
    for part, module in head.named_modules():
        module.register_forward_hook(lambda *_, part=part: ran.append(part))
    features, fine = torch.randn(3, 8, 14, 14), torch.randn(3, 8, 28, 28)
    category = torch.tensor([0, 4, 2])
    masks = head.forward_mask(features, fine, category)
    assert [part for part in ran if f"{part}.".startswith(TRAIN_ONLY)] == []
    assert "mask.deconv" in ran
    ran.clear()
    logits = head(features, fine, category)
    bands = ("boundary",) if name == "bmask" else ("boundary", "contraction", "expansion")
    assert {f"{band}.deconv" for band in bands} <= set(ran)
    assert torch.equal(masks, logits.mask)


def test_the_predictor_gives_the_map_of_the_category():
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


@pytest.mark.parametrize("name", ["plain", "bmask", "squeeze", "paper", "light"])
def test_no_convolutions_and_other_widths(name: str):
    for num_convs, channels in ((0, 12), (2, 6)):
        head = head_of(name, in_channels=10, num_convs=num_convs, channels=channels)
        assert get_mask_function(head)(*make_inputs(2, 10, name=name)).shape == (2, 28, 28)


@pytest.mark.parametrize("name", ["plain", "bmask", "squeeze", "light"])
def test_channels_last_gives_the_same_numbers(name: str):
    head = small(name)
    arguments = make_inputs(3, 8, name=name)
    expected = get_mask_function(head)(*arguments)
    changed = copy.deepcopy(head).to(memory_format=torch.channels_last)
    arguments_nhwc = [
        each.to(memory_format=torch.channels_last) if each.dim() == 4 else each
        for each in arguments
    ]
    assert not arguments_nhwc[0].is_contiguous()
    assert torch.allclose(get_mask_function(changed)(*arguments_nhwc), expected, atol=1e-6)


def test_init_values():
    torch.manual_seed(0)
    head = head_of("squeeze")
    assert abs(head.mask.logits.weight.std().item() - 0.001) < 5e-5
    assert abs(head.convs[0].weight.std().item() - (2 / (256 * 9)) ** 0.5) < 1e-3
    released = head_of("squeeze", squeeze=SqueezeConfig(initialization="released"))
    # torch's default for the two layers that the released code leaves out: uniform, fan 256 * 4.
    bound = (1 / (256 * 4)) ** 0.5
    assert released.contraction.deconv.weight.abs().max() <= bound
    assert released.mask.deconv.weight.abs().max() > bound
