"""PointRend and the squeeze on label maps: their points, grids, losses and inference."""

import dataclasses

import pytest
import torch
from torch import nn

from bsm.build import build_model
from bsm.configs.shared import SqueezeConfig
from bsm.points import sample_nearest
from bsm.semantic import pointrend, squeeze
from bsm.semantic.decoder import Features, upsample_to_image
from bsm.semantic.deeplab import DeepLab
from bsm.semantic.field import VOID
from tests.bsm.semantic.label_maps import shapes_batch, tiny_config


def model_of(**fields) -> DeepLab:
    torch.manual_seed(0)
    return build_model(tiny_config(**fields))


def features_of(model: DeepLab) -> Features:
    images, sizes, _ = shapes_batch()
    return model._compute_features(images, sizes)[0]


def with_head(config, **fields):
    return dataclasses.replace(config, head=dataclasses.replace(config.head, **fields))


def test_a_point_reads_the_pixel_that_contains_it():
    label = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
    points = torch.tensor([[[0.0, 0.0], [0.26, 0.34], [0.999, 0.999], [0.49, 0.66], [1.0, 1.0]]])
    assert sample_nearest(label, points).tolist() == [[0, 5, 11, 5, 11]]


def test_points_are_where_the_coarse_map_is_most_uncertain(monkeypatch):
    model, drawn = model_of(kind="pointrend"), []
    real = pointrend.draw_training_points
    monkeypatch.setattr(
        pointrend, "draw_training_points", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1]
    )
    # The first class is certain on the left, the second on the right.
    ramp = torch.linspace(-1, 1, 20).expand(2, 1, 16, 20)
    model.head.decoder.forward = lambda low, context: torch.cat(
        [-9 * ramp, 9 * ramp, -9 + 0 * ramp], 1
    )
    model(*shapes_batch())
    (points,) = drawn
    assert points.shape == (2, 64, 2)
    important, rest = points[:, :48], points[:, 48:]
    assert (important[..., 0] - 0.5).abs().max() < 0.2 < (rest[..., 0] - 0.5).abs().max()
    assert not torch.equal(points[0], points[1])


def test_points_on_void_have_no_loss():
    model = model_of(kind="pointrend")
    images, sizes, targets = shapes_batch()
    losses = model(images, sizes, targets._replace(label=torch.full_like(targets.label, VOID)))
    assert losses["loss_point"] == 0
    one = targets.label.clone()
    one[0] = VOID
    alone = model(images, sizes, targets._replace(label=one))["loss_point"]
    assert alone > 0


def test_points_depend_only_on_their_own_sample(monkeypatch):
    drawn = []
    real = pointrend.draw_training_points
    monkeypatch.setattr(
        pointrend, "draw_training_points", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1]
    )
    model = model_of(kind="pointrend").eval()  # fixed norms: batch statistics depend on the batch
    images, sizes, targets = shapes_batch()
    model._compute_losses(images, sizes, targets)
    alone = type(targets)(*(t[1:] for t in targets))
    model._compute_losses(images[1:], sizes[1:], alone)
    assert torch.allclose(drawn[0][1], drawn[1][0], atol=1e-4)


def test_pointrend_predicts_only_the_most_uncertain_cells_of_the_image_again(monkeypatch):
    model, calls = model_of(kind="pointrend").eval(), []
    real = pointrend.find_uncertain_cells

    def spy(uncertainty, *, num_points):
        index, points = real(uncertainty, num_points=num_points)
        calls.append((uncertainty, index))
        return index, points

    monkeypatch.setattr(pointrend, "find_uncertain_cells", spy)
    images = torch.randint(0, 255, (2, 3, 64, 80), dtype=torch.uint8)
    sizes = torch.tensor([[64, 80], [33, 41]])
    logits = model(images, sizes)
    assert logits.shape == (2, 3, 64, 80)
    assert [tuple(u.shape[1:]) for u, _ in calls] == [(32, 40), (64, 80)]
    for uncertainty, index in calls:
        assert index.shape == (2, 100)
        for n in range(2):
            refined = uncertainty[n].flatten()[index[n]]
            left = torch.ones(uncertainty[n].numel(), dtype=torch.bool)
            left[index[n]] = False
            assert refined.min() >= uncertainty[n].flatten()[left].max()
            assert refined.isfinite().all()
    rows, columns = calls[1][1][1] // 80, calls[1][1][1] % 80
    assert rows.max() < 33
    assert columns.max() < 41


def test_without_subdivision_pointrend_returns_the_coarse_map():
    config = tiny_config(kind="pointrend")
    points = dataclasses.replace(config.head.pointrend, subdivisions=0)
    torch.manual_seed(0)
    model = build_model(with_head(config, pointrend=points)).eval()
    images, sizes, _ = shapes_batch()
    with torch.no_grad():
        features = features_of(model)
        coarse = upsample_to_image(
            model.head.decoder(features.low, features.context), features, like=images
        )
    assert torch.equal(model(images, sizes), coarse)


@pytest.mark.parametrize("kind", ["squeeze", "light", "pointrend"])
def test_inference_does_not_run_training_only_parts(kind: str):
    model, ran = model_of(kind=kind, auxiliary=0.4), set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
    model.eval()(*shapes_batch()[:2])
    in_inference = set(ran)
    model.train()(*shapes_batch())
    bands = {f"head.bands.{name}" for name in ("boundary", "contraction", "expansion")}
    only_losses = {"auxiliary"} | (bands if kind != "pointrend" else set())
    assert only_losses <= ran
    assert not [n for n in in_inference if n.startswith(tuple(only_losses))]
    assert {"head.decoder.logits", "pyramid.project"} <= in_inference


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("kind", ["squeeze", "light"])
def test_the_squeeze_works_at_a_stride_of_8_and_feeds_the_decoder(kind, output_stride):
    model, seen = model_of(kind=kind, output_stride=output_stride), []
    model.head.squeeze.register_forward_hook(lambda _, args, out: seen.append((args, out)))
    model.head.decoder.register_forward_hook(lambda _, args, __: seen.append(args))
    features = features_of(model)
    model.head.predict(features)
    ((context, fine), squeezed), (low, refined) = seen
    assert context.shape == (2, 16, 8, 10)
    assert torch.equal(context, features.context) == (output_stride == 8)
    assert fine is features.low
    assert low is features.low
    assert low.shape[-2:] == (16, 20)
    assert refined is squeezed.refined


def test_the_squeeze_has_norms_and_no_last_convolution():
    module = model_of().head.squeeze
    assert module.mask_fusion is None
    assert isinstance(module.downsample[1], nn.BatchNorm2d)
    assert module.downsample[0].stride == (2, 2)
    assert module.downsample[0].kernel_size == (3, 3)
    convs = [name for name, each in module.named_modules() if isinstance(each, nn.Conv2d)]
    norms = [name for name, each in module.named_modules() if isinstance(each, nn.BatchNorm2d)]
    assert len(norms) == len([name for name in convs if "flow" not in name]) == 8


@pytest.mark.parametrize(
    "fields",
    [
        {"branches": ("boundary",)},
        {"branches": ("contraction", "expansion")},
        {"fine_features": False},
        {"mask_feature": False, "boundary_to_mask": False},
        {"warp": "none"},
        {"variant": "paper", "fusion": "minus", "initialization": "released"},
        {"mask_fusion": True, "legacy_warp": True},
    ],
    ids=str,
)
def test_every_option_of_the_squeeze_trains(fields: dict):
    options = {"norm": "batch", "mask_fusion": False} | fields
    torch.manual_seed(0)
    model = build_model(with_head(tiny_config(), squeeze=SqueezeConfig(**options)))
    losses = model(*shapes_batch())
    branches = options.get("branches", ("boundary", "contraction", "expansion"))
    assert set(losses) == {"loss_segmentation", *(f"loss_{name}" for name in branches)}
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_light_variant_accepts_mask_fusion_false():
    assert SqueezeConfig(variant="light", mask_fusion=False).variant == "light"


@pytest.mark.parametrize("kind", ["squeeze", "pointrend"])
def test_each_weight_scales_its_own_losses(kind: str):
    config = tiny_config(kind=kind, auxiliary=0.4)
    names = ("segmentation", "boundary", "contraction", "expansion", "auxiliary")
    scale = dict(zip(names, (2.0, 3.0, 0.5, 0.25, 1.6), strict=True))
    weights = dataclasses.replace(config.head.loss_weights, **scale)
    model, scaled = model_of(kind=kind, auxiliary=0.4), None
    torch.manual_seed(0)
    scaled = build_model(with_head(config, loss_weights=weights))
    plain, found = model(*shapes_batch()), scaled(*shapes_batch())
    for name, value in plain.items():
        part = name.removeprefix("loss_").replace("point", "segmentation")
        factor = 4.0 if part == "auxiliary" else scale[part]
        assert found[name].item() == pytest.approx(factor * value.item(), rel=1e-5), name


def test_bands_use_the_kernel_of_the_config(monkeypatch):
    seen = []
    real = squeeze.targets_from_semantic_field
    monkeypatch.setattr(
        squeeze, "targets_from_semantic_field", lambda *a, **k: seen.append(k) or real(*a, **k)
    )
    model_of(kernel_size=9)(*shapes_batch())
    assert seen == [{"num_classes": 3, "kernel_size": 9, "unite_boundary": True}]
