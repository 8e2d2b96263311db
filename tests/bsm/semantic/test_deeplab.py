"""Inputs, outputs, parts and training of the three semantic models."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from bsm.build import build_model
from bsm.configs.semantic import DeepLabConfig, SemanticHeadConfig, SemanticLossWeights
from bsm.configs.shared import BackboneConfig
from bsm.semantic.decoder import AtrousPyramid, resize
from bsm.semantic.deeplab import choose_labels
from bsm.semantic.field import VOID, SemanticTargets
from tests.bsm.semantic.label_maps import KINDS, shapes_batch, targets_of, tiny_config

SQUEEZE_LOSSES = {"loss_segmentation", "loss_boundary", "loss_contraction", "loss_expansion"}
GUIDED_LOSSES = SQUEEZE_LOSSES | {"loss_flow_contraction", "loss_flow_expansion"}
LOSSES = {
    "plain": {"loss_segmentation"},
    "pointrend": {"loss_segmentation", "loss_point"},
    "squeeze": SQUEEZE_LOSSES,
    "light": GUIDED_LOSSES,
    "guided": GUIDED_LOSSES,
}


def model_of(seed: int = 0, **fields):
    torch.manual_seed(seed)
    return build_model(tiny_config(**fields))


def grads(model, losses) -> dict:
    model.zero_grad()
    sum(losses.values()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def wake(model: nn.Module) -> None:
    """Randomize the flows: starting at zero, they hide the layers before them."""
    for name, parameter in model.named_parameters():
        if ".flow" in name and not parameter.any():
            nn.init.normal_(parameter, std=0.01)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind: str, output_stride: int):
    model = model_of(kind=kind, output_stride=output_stride, auxiliary=0.4)
    wake(model)
    losses = model(*shapes_batch())
    assert set(losses) == LOSSES[kind] | {"loss_auxiliary"}
    assert all(value.shape == () and value > 0 for value in losses.values())
    # Residual branches end in a norm that starts at zero and hides the layers before it.
    touched = {
        name: grad is not None and (grad.any() or name.startswith("backbone."))
        for name, grad in grads(model, losses).items()
    }
    assert [name for name, is_touched in touched.items() if not is_touched] == []


@pytest.mark.parametrize("labels", ["all void", "one class", "one image void"])
@pytest.mark.parametrize("kind", KINDS)
def test_crops_without_outlines_train(kind: str, labels: str):
    model = model_of(kind=kind, auxiliary=0.4, cross_entropy="ohem")
    images, sizes, targets = shapes_batch()
    label = targets.label.clone()
    label[0] = VOID
    if labels != "one image void":
        label[1] = VOID if labels == "all void" else 1
    losses = model(images, sizes, targets_of(label))
    assert all(value.isfinite() for value in losses.values())
    if labels == "all void":
        assert not any(losses.values())
    for name, grad in grads(model, losses).items():
        assert grad is not None, name
        assert grad.isfinite().all(), name


def test_models_have_no_untrained_parts():
    assert model_of().auxiliary is None
    assert "loss_auxiliary" not in model_of()(*shapes_batch())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_have_the_size_of_the_input(kind: str):
    model = model_of(kind=kind).eval()
    images = torch.randint(0, 255, (3, 3, 45, 61), dtype=torch.uint8)
    sizes = torch.tensor([[45, 61], [30, 61], [45, 7]])
    logits = model(images, sizes)
    assert logits.shape == (3, 3, 45, 61)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    labels = choose_labels(logits, sizes)
    assert labels.dtype == torch.uint8
    for n, (height, width) in enumerate(sizes.tolist()):
        inside = labels[n, :height, :width]
        assert torch.equal(inside, logits[n, :, :height, :width].argmax(0).to(torch.uint8))
        assert (labels[n] == VOID).sum() == 45 * 61 - height * width


@pytest.mark.parametrize("kind", KINDS)
def test_odd_sizes_train(kind: str):
    images, sizes, targets = shapes_batch()
    cut = SemanticTargets(*(t[:, :45, :61] if t.dim() == 3 else t for t in targets))
    losses = model_of(kind=kind)(images[..., :45, :61], sizes.clamp(max=45), cut)
    assert all(value.isfinite() for value in losses.values())


def test_the_mean_of_an_image_excludes_padding():
    torch.manual_seed(0)
    pyramid = AtrousPyramid(6, 4, rates=(1,), stride=8).eval()
    seen = []
    pyramid.pooled.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    x = torch.randn(2, 6, 5, 7)
    pyramid(x, torch.tensor([[40, 56], [17, 16]]))
    wanted = torch.stack([x[0].mean((1, 2)), x[1, :, :3, :2].mean((1, 2))])
    assert torch.allclose(seen[0][..., 0, 0], wanted, atol=1e-6)


def test_one_image_trains_with_batch_norm():
    images, sizes, targets = shapes_batch()
    one = SemanticTargets(*(t[:1] for t in targets))
    assert model_of()(images[:1], sizes[:1], one)["loss_segmentation"].isfinite()


def test_resampling_does_not_depend_on_the_size_of_the_map():
    x = torch.randn(1, 2, 6, 20)
    small, large = resize(x[..., :10], (24, 40)), resize(x, (24, 80))
    # Except for pixels that depend on the last cell of the smaller map, which has no neighbor.
    assert torch.allclose(small[..., :38], large[..., :38], atol=1e-6)


# Hand arithmetic for ResNet-50 and 19 classes. The backbone is timm's without its classifier.
BACKBONE = 25_557_032 - (2048 * 1000 + 1000)
PYRAMID = (
    (2048 * 256 + 512)  # 1 x 1, batch norm
    + 3 * (9 * 2048 * 256 + 512)  # three dilated 3 x 3
    + (2048 * 256 + 256)  # of the image's mean
    + (5 * 256 * 256 + 256)  # the projection
)
DECODER = (256 * 48 + 48) + (9 * (256 + 48) * 256 + 512) + (9 * 256 * 256 + 512) + (256 * 19 + 19)
CONV = 9 * 256 * 256
SQUEEZE = (
    (CONV + 512)  # downsample
    + 2 * (2 * (CONV + 512) + 9 * 512 * 2)  # two towers with their flows
    + 2 * (CONV + 512)  # boundary tower
    + (256 * 256 + 512)  # boundary to mask
)
POINTS = (275 * 256 + 256) + 2 * (256 * 256 + 256) + (256 * 19 + 19)
BAND = (4 * 256 * 256 + 256) + (256 * 19 + 19)


@pytest.mark.parametrize(
    ("kind", "extra", "train_only"),
    [("plain", 0, 0), ("pointrend", POINTS, 0), ("squeeze", SQUEEZE, 3 * BAND)],
)
def test_parameter_counts_match_hand_arithmetic(kind: str, extra: int, train_only: int):
    with torch.device("meta"):
        model = build_model(DeepLabConfig(head=SemanticHeadConfig(kind=kind)))
    counts = {name: p.numel() for name, p in model.named_parameters()}
    bands = sum(n for name, n in counts.items() if name.startswith("head.bands."))
    assert bands == train_only
    assert sum(counts.values()) - bands == BACKBONE + PYRAMID + DECODER + extra


def test_an_empty_config_is_the_papers_model():
    with torch.device("meta"):
        model = build_model(DeepLabConfig())
    dilations = [branch[0].dilation[0] for branch in model.pyramid.branches]
    assert dilations == [1, 12, 24, 36]
    assert model.backbone.trunk.layer4[2].conv2.dilation == (4, 4)
    with torch.device("meta"):
        coarser = build_model(DeepLabConfig(output_stride=16))
    assert [branch[0].dilation[0] for branch in coarser.pyramid.branches] == [1, 6, 12, 18]


def norms(model: nn.Module) -> set[type]:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    return {
        next(k for k in (nn.SyncBatchNorm, nn.GroupNorm, nn.BatchNorm2d) if isinstance(m, k))
        for m in model.modules()
        if isinstance(m, kinds)
    }


@pytest.mark.parametrize(
    ("norm", "backbone", "rest"),
    [
        ("sync", {nn.SyncBatchNorm}, {nn.SyncBatchNorm}),
        ("batch", {nn.BatchNorm2d}, {nn.BatchNorm2d}),
        ("group", {nn.GroupNorm}, {nn.GroupNorm}),
        ("frozen", set(), {nn.BatchNorm2d}),
    ],
)
@pytest.mark.parametrize("kind", ["squeeze", "light"])
def test_the_head_has_the_norm_of_the_backbone(kind: str, norm: str, backbone: set, rest: set):
    model = model_of(kind=kind, norm=norm, auxiliary=0.4)
    assert norms(model.backbone) == backbone
    for part in (model.pyramid, model.head.squeeze, model.head.decoder, model.auxiliary):
        assert norms(part) == rest


def test_synchronized_norms_of_one_process_are_batch_norms():
    batch, sync = model_of(), model_of(norm="sync")
    sync.load_state_dict(batch.state_dict())
    for name, value in batch(*shapes_batch()).items():
        assert torch.allclose(sync(*shapes_batch())[name], value, atol=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_gives_the_same_numbers(kind: str):
    model = model_of(kind=kind)
    changed = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images, sizes, targets = shapes_batch()
    laid = images.contiguous(memory_format=torch.channels_last)
    assert not laid.is_contiguous()
    expected = model(images, sizes, targets)
    for name, value in changed(laid, sizes, targets).items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-5), name
    model.eval()
    changed.eval()
    assert torch.allclose(changed(laid, sizes), model(images, sizes), atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "pointrend", "guided"])
def test_mixed_precision_gives_nearly_the_same_losses(kind: str):
    full = model_of(kind=kind)(*shapes_batch())
    model = model_of(kind=kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(*shapes_batch())
    for name, value in full.items():
        assert mixed[name].dtype == torch.float32
        assert torch.allclose(mixed[name], value, rtol=0.05, atol=0.02), name
    assert all(grad.isfinite().all() for grad in grads(model, mixed).values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.eval()(*shapes_batch()[:2]).dtype == torch.float32


@pytest.mark.parametrize("kind", ["plain", "pointrend", "guided", "light"])
def test_a_tiny_model_learns(kind: str):
    model = model_of(kind=kind)
    images, sizes, targets = shapes_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=40)
    for _ in range(40):
        optimizer.zero_grad()
        sum(model(images, sizes, targets).values()).backward()
        optimizer.step()
        schedule.step()
    found = choose_labels(model.eval()(images, sizes), sizes)
    known = targets.label != VOID
    for c in range(3):
        a, b = (found == c) & known, targets.label == c
        assert (a & b).sum() / (a | b).sum() > 0.8


def test_a_saved_model_is_the_same_model(tmp_path):
    from bsm.checkpoints.weights import load_weights, save_weights

    a, b = model_of(seed=0).eval(), model_of(seed=1).eval()
    save_weights(a, tmp_path / "model.safetensors")
    load_weights(b, tmp_path / "model.safetensors")
    images, sizes, _ = shapes_batch()
    assert torch.equal(a(images, sizes), b(images, sizes))


def test_missing_and_misshaped_targets_raise():
    images, sizes, targets = shapes_batch()
    with pytest.raises(ValueError, match="targets: missing"):
        model_of()(images, sizes)
    wrong = targets._replace(label=targets.label[:, 1:], zoom=targets.zoom[:1])
    with pytest.raises(ValueError, match=r"label is \(2, 63, 80\); zoom is \(1,\).*\(2, 64, 80\)"):
        model_of()(images, sizes, wrong)


def test_all_problems_of_a_config_are_listed():
    with pytest.raises(ValueError, match=r"num_classes: .*\[2, 255\].*; output_stride: .* 8, 16"):
        DeepLabConfig(num_classes=256, output_stride=32)
    with pytest.raises(ValueError, match=r"aspp_rates: .* empty.*; channels: .* at least 1"):
        SemanticHeadConfig(aspp_rates=(), channels=0)
    with pytest.raises(ValueError, match=r"no flow to guide"):
        dataclasses.replace(tiny_config(kind="guided").head, kind="plain")
    with pytest.raises(ValueError, match=r"auxiliary: must be at least 0, got -0\.1"):
        SemanticLossWeights(auxiliary=-0.1)
    with pytest.raises(ValueError, match=r"freeze_at: must be in \[0, 5\], got 6"):
        BackboneConfig(freeze_at=6)
