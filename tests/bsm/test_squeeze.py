"""The module follows its formulas, trains everywhere, and takes five lines to add to a model."""

import textwrap

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import bsm
from bsm import squeeze as squeeze_file
from bsm.configs.shared import SqueezeConfig
from bsm.deform import flow_warp
from bsm.field import targets_from_field
from bsm.light import LightBoundarySqueeze
from bsm.losses import SqueezeLogits, squeeze_losses
from bsm.squeeze import BoundarySqueeze

WIRINGS = pytest.mark.parametrize("variant", ["paper", "released"])
INITIALIZATIONS = pytest.mark.parametrize("initialization", ["released", "kaiming"])


def squeeze_of(channels, fine_channels=None, **options):
    return BoundarySqueeze(channels, fine_channels=fine_channels, config=SqueezeConfig(**options))


def light_of(channels, fine_channels=None, **options):
    config = SqueezeConfig(variant="light", **options)
    return LightBoundarySqueeze(channels, fine_channels=fine_channels, config=config)


def features(rois=3, channels=8, fine_channels=8):
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(rois, channels, 14, 14, generator=generator, requires_grad=True)
    fine = torch.randn(rois, fine_channels, 28, 28, generator=generator, requires_grad=True)
    return m, fine


# The rest of a mask head with 80 categories: four convolutions, a deconvolution, a predictor.
PLAIN_HEAD = 4 * (9 * 256 * 256 + 256) + (4 * 256 * 256 + 256) + (80 * 256 + 80)


@pytest.mark.parametrize(("variant", "millions"), [("released", 7.447), ("paper", 5.154)])
def test_parameters_in_use_at_inference_are_those_of_the_original(variant, millions):
    share = sum(p.numel() for p in squeeze_of(256, variant=variant).parameters())
    assert round((share + PLAIN_HEAD) / 1e6, 3) == millions


@pytest.mark.parametrize(("fusion", "sign"), [("plus", 1), ("minus", -1)])
def test_paper_variant_is_equation_1_and_one_convolution(fusion, sign):
    m, fine = features()
    module = squeeze_of(8, variant="paper", fusion=fusion)
    squeezed = module(m, fine)
    c, e = squeezed.contraction, squeezed.expansion
    assert torch.equal(squeezed.boundary, c + e + sign * m)
    assert torch.equal(squeezed.refined, m + module.boundary_to_mask(squeezed.boundary))


def test_released_variant_refines_the_boundary_and_fuses_all_into_the_mask():
    m, fine = features()
    module = squeeze_of(8, fusion="minus")
    squeezed = module(m, fine)
    c, e = squeezed.contraction, squeezed.expansion
    assert torch.equal(squeezed.boundary, module.boundary_tower(c + e - m))
    fused = m + module.boundary_to_mask(squeezed.boundary) + c + e
    assert torch.equal(squeezed.refined, module.mask_fusion(fused))
    for layer in (module.downsample, module.boundary_to_mask, module.mask_fusion):
        assert isinstance(layer[-1], nn.ReLU)
    assert not isinstance(squeeze_of(8, variant="paper").boundary_to_mask[-1], nn.ReLU)


def test_a_zero_flow_leaves_the_tower_unchanged():
    m, fine = features()
    module = squeeze_of(8, initialization="kaiming")
    summed = m + module.downsample(fine)
    assert torch.equal(module(m, fine).contraction, module.contraction.tower(summed))


def test_without_a_warp_there_is_no_flow():
    module = squeeze_of(8, warp="none")
    assert not any("slot" in name for name, _ in module.named_parameters())
    m, fine = features()
    squeezed = module(m, fine)
    assert squeezed.refined.shape == m.shape
    assert squeezed.flows == (None, None)
    summed = m + module.downsample(fine)
    assert torch.equal(squeezed.expansion, module.expansion.tower(summed))


@pytest.mark.parametrize("warp", ["flow", "dcnv2", "dgmn"])
@WIRINGS
def test_each_warp_trains_in_the_squeeze(variant, warp):
    torch.manual_seed(0)
    m, fine = features(channels=64, fine_channels=5)
    module = squeeze_of(64, fine_channels=5, variant=variant, warp=warp)
    for name, parameter in module.named_parameters():
        # A layer that starts at zero would hide the layers before it.
        if "slot" in name and not parameter.any():
            nn.init.normal_(parameter, std=0.01)
    sum(feature.square().sum() for feature in module(m, fine)[:4]).backward()
    assert [
        name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()
    ] == []


def subsets():
    names = ("boundary", "contraction", "expansion")
    return [
        tuple(name for place, name in enumerate(names) if bits >> place & 1) for bits in range(1, 8)
    ]


@WIRINGS
@pytest.mark.parametrize("branches", subsets(), ids="+".join)
def test_branches_that_are_left_out_leave_every_sum(variant, branches):
    torch.manual_seed(0)
    m, fine = features()
    module = squeeze_of(8, variant=variant, branches=branches)
    squeezed = module(m, fine)
    for name in ("boundary", "contraction", "expansion"):
        assert (getattr(squeezed, name) is not None) == (name in branches)
    summed = m + module.downsample(fine)
    parts = [part for part in (squeezed.contraction, squeezed.expansion) if part is not None]
    boundary = sum(parts) if parts else summed
    boundary = boundary + m
    if variant == "paper":
        expected = m + module.boundary_to_mask(boundary)
    else:
        boundary = module.boundary_tower(boundary)
        expected = module.mask_fusion(m + module.boundary_to_mask(boundary) + sum(parts))
    assert torch.allclose(squeezed.refined, expected, atol=1e-5)
    (squeezed.refined.square().sum() + sum(f.sum() for f in parts)).backward()
    assert all(p.grad is not None for p in module.parameters())


@WIRINGS
def test_without_the_fine_feature_the_towers_read_only_the_roi(variant):
    m, fine = features()
    module = squeeze_of(8, variant=variant, fine_features=False, warp="none")
    assert not any("downsample" in name for name, _ in module.named_parameters())
    assert torch.equal(module(m).contraction, module.contraction.tower(m))
    with pytest.raises(ValueError, match=r"fine_features are given to a module .* without"):
        module(m, fine)
    with pytest.raises(ValueError, match="fine_features are missing"):
        squeeze_of(8, variant=variant)(m)


@WIRINGS
def test_equation_1_without_the_mask_feature(variant):
    m, fine = features()
    module = squeeze_of(8, variant=variant, mask_feature=False)
    squeezed = module(m, fine)
    expected = squeezed.contraction + squeezed.expansion
    if module.boundary_tower is not None:
        expected = module.boundary_tower(expected)
    assert torch.equal(squeezed.boundary, expected)


@WIRINGS
def test_without_boundary_to_mask_the_boundary_itself_is_added(variant):
    m, fine = features()
    module = squeeze_of(8, variant=variant, boundary_to_mask=False, mask_fusion=False)
    squeezed = module(m, fine)
    expected = m + squeezed.boundary
    if variant == "released":
        expected = expected + squeezed.contraction + squeezed.expansion
    assert torch.equal(squeezed.refined, expected)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_follow_every_convolution_but_the_flows(norm):
    kind = {"batch": nn.BatchNorm2d, "group": nn.GroupNorm}[norm]
    for module in (squeeze_of(8, norm=norm), light_of(8, norm=norm, light_channels=4)):
        norms = sum(isinstance(each, kind) for each in module.modules())
        convs = [name for name, each in module.named_modules() if isinstance(each, nn.Conv2d)]
        bare = [name for name in convs if "flow" in name or name == "towers_out"]
        assert norms == len(convs) - len(bare) > 0
        m, fine = features()
        assert module(m, fine).refined.shape == m.shape


def test_the_legacy_warp_reaches_both_generators():
    m, fine = features()
    ours = BoundarySqueeze(8)
    theirs = squeeze_of(8, legacy_warp=True)
    theirs.load_state_dict(ours.state_dict())
    mine, legacy = ours(m, fine), theirs(m, fine)
    assert not torch.allclose(mine.contraction, legacy.contraction)
    assert not torch.allclose(mine.expansion, legacy.expansion)


@WIRINGS
def test_the_sum_does_not_train_the_roi_feature(variant):
    m, fine = features()
    squeezed = squeeze_of(8, variant=variant, warp="none")(m, fine)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(squeezed.contraction.sum(), m, retain_graph=True)
    (fine_grad,) = torch.autograd.grad(squeezed.contraction.sum(), fine)
    assert fine_grad.any()


@WIRINGS
@INITIALIZATIONS
def test_gradients_reach_every_parameter(variant, initialization):
    torch.manual_seed(0)
    m, fine = features(fine_channels=5)
    module = squeeze_of(8, fine_channels=5, variant=variant, initialization=initialization)
    sum(feature.square().sum() for feature in module(m, fine)[:4]).backward()
    assert [
        name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()
    ] == []
    assert m.grad.any()
    assert fine.grad.any()


@INITIALIZATIONS
def test_initializations_match_their_names(initialization):
    torch.manual_seed(0)
    generator = squeeze_of(64, initialization=initialization).contraction
    std = generator.tower[2].weight.std().item()
    if initialization == "released":
        assert std == pytest.approx(0.01, rel=0.05)
        assert generator.slot.flow.weight.abs().max().item() <= (2 * 64 * 9) ** -0.5
        assert generator.slot.flow.weight.any()
    else:
        assert std == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
        assert not generator.slot.flow.weight.any()


@WIRINGS
def test_a_batch_without_rois_trains(variant):
    m, fine = features(rois=0)
    module = squeeze_of(8, variant=variant)
    sum(feature.sum() for feature in module(m, fine)[:4]).backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_fine_features_of_the_wrong_size_raise_with_the_right_one():
    m, _ = features()
    with pytest.raises(ValueError, match=r"\(3, 8, 14, 14\).*Pool the same boxes at \[28, 28\]"):
        BoundarySqueeze(8)(m, torch.zeros(3, 8, 14, 14))


def test_all_wrong_options_are_listed():
    with pytest.raises(ValueError, match=r"'cod'; .*'rim'; fusion: .*'add'"):
        squeeze_of(8, variant="cod", fusion="add", branches=("rim",))
    with pytest.raises(ValueError, match=r"no switch branches, mask_feature; .*dgmn"):
        light_of(8, branches=("boundary",), mask_feature=False, warp="dgmn")
    with pytest.raises(ValueError, match='a head without any is kind "plain"'):
        squeeze_of(8, branches=())
    with pytest.raises(ValueError, match=r"Take LightBoundarySqueeze of bsm\.light"):
        squeeze_of(8, variant="light")


def test_the_light_squeeze_follows_its_formulas():
    torch.manual_seed(0)
    m, fine = features(fine_channels=5)
    module = light_of(8, fine_channels=5, light_channels=4, fusion="minus")
    nn.init.normal_(module.flows.weight, std=0.1)
    squeezed = module(m, fine)
    narrow = module.narrow(m)
    towers = module.towers_out(module.towers_in(narrow + module.downsample(fine)))
    flows = module.flows(torch.cat([towers, narrow], 1))
    assert torch.equal(squeezed.flows.expansion, flows[:, 2:])
    assert torch.allclose(squeezed.contraction, flow_warp(towers[:, :4], flows[:, :2]))
    assert torch.allclose(squeezed.expansion, flow_warp(towers[:, 4:], flows[:, 2:]))
    c, e = squeezed.contraction, squeezed.expansion
    assert torch.allclose(squeezed.boundary, module.boundary_tower(c + e - narrow), atol=1e-6)
    widened = module.widen(torch.cat([squeezed.boundary, c, e], 1))
    assert torch.allclose(squeezed.refined, (m + widened).relu())
    # The contraction tower's second convolution does not read the expansion tower.
    (grad,) = torch.autograd.grad(towers[:, :4].sum(), module.towers_out.weight)
    assert not grad[4:].any()


@pytest.mark.parametrize("warp", ["flow", "none"])
def test_gradients_reach_every_parameter_of_the_light_squeeze(warp):
    torch.manual_seed(0)
    m, fine = features(fine_channels=5)
    module = light_of(8, fine_channels=5, light_channels=4, warp=warp)
    sum(feature.square().sum() for feature in module(m, fine)[:4]).backward()
    assert [
        name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()
    ] == []
    with pytest.raises(ValueError, match="fine_features are missing"):
        module(m)


def training_step(variant):
    """Run squeeze, predictors and losses on the default device."""
    module = squeeze_of(8, variant=variant)
    predict = nn.ModuleList(nn.ConvTranspose2d(8, 1, 2, stride=2) for _ in range(4))
    field = torch.ones(6, 28, 28, dtype=torch.int8)
    targets = targets_from_field(field, kernel_size=5, unite_boundary=True)
    squeezed = module(torch.zeros(6, 8, 14, 14), torch.zeros(6, 8, 28, 28))
    logits = SqueezeLogits(*(p(f)[:, 0] for p, f in zip(predict, squeezed[:4], strict=True)))
    return module, squeeze_losses(logits, targets, weights=torch.ones(6))


@WIRINGS
@pytest.mark.parametrize(("device", "amp"), [("cuda", False), ("cpu", False), ("cpu", True)])
def test_a_training_step_never_syncs_with_the_host(variant, device, amp):
    # Fake tensors raise if the host reads a value; torch runs backward through fake CUDA tensors
    # only with a CUDA device.
    with FakeTensorMode(), torch.device(device):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=amp):
            module, losses = training_step(variant)
        if device == "cpu":
            sum(losses.values()).backward()
            assert all(p.grad is not None for p in module.parameters())
    assert {loss.device.type for loss in losses.values()} == {device}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@WIRINGS
def test_a_training_step_on_a_real_gpu_never_syncs(variant):
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.device("cuda"):
            _, losses = training_step(variant)
            sum(losses.values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_five_lines_of_the_documentation_run():
    indented = [line for line in squeeze_file.__doc__.splitlines() if line.startswith("    ")][:5]
    names = {name: getattr(bsm, name) for name in bsm.__all__}
    names |= {
        "roi_features": torch.randn(2, 256, 14, 14),
        "fine_features": torch.randn(2, 256, 28, 28),
        "masks": torch.rand(2, 28, 28) > 0.5,
        "predict": [
            nn.Sequential(nn.ConvTranspose2d(256, 1, 2, stride=2), nn.Flatten(1, 2))
            for _ in range(4)
        ],
    }
    exec(textwrap.dedent("\n".join(indented)), names)  # noqa: S102  what a reader would type
    names["loss"].backward()
    assert torch.isfinite(names["loss"])
    assert names["squeezed"].refined.shape == (2, 256, 14, 14)
    assert names["squeeze"].downsample[0].weight.grad.any()


def test_the_package_exports_few_names():
    assert len(bsm.__all__) <= 10
    assert all(hasattr(bsm, name) for name in bsm.__all__)
