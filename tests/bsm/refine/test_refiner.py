"""The refiner: damage, crops, losses and whole photos."""

import cv2
import numpy as np
import pytest
import torch

from bsm.backbone import build_backbone
from bsm.backbone_norms import fold_norms
from bsm.build import build_model
from bsm.checkpoints.weights import save_weights
from bsm.configs.refine import RefinerConfig
from bsm.configs.shared import BackboneConfig
from bsm.instance.tensors import Targets
from bsm.refine.damage import damage_masks
from bsm.refine.outline import clipped_distance
from bsm.refine.refine import choose_side, refine_masks
from bsm.refine.training_crops import make_training_crops
from tests.bsm.synthetic import shapes_batch
from tests.no_host_tensors import ForbidHostTensors, fake_gpu


def tiny_refiner(squeeze: str = "none", cell_px: int = 1, **values) -> RefinerConfig:
    return RefinerConfig(
        backbone=BackboneConfig(name="resnet10t", norm="batch", freeze_at=0),
        widths=(8, 8, 8, 8, 8, 8),
        squeeze=squeeze,
        cell_px=cell_px,
        train_px=64,
        crop_px=(64, 96),
        **values,
    )


SQUEEZES = [("none", 1), ("plain", 2), ("guided", 2)]


def disk(side: int, radius: float, *, center: tuple[float, float] | None = None) -> torch.Tensor:
    x, y = center or (side / 2, side / 2)
    at = torch.arange(side) + 0.5
    return (at[:, None] - y) ** 2 + (at - x) ** 2 < radius**2


def with_masks(slots: int = 3) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    images, sizes, targets = shapes_batch()
    if targets.masks is None:
        masks = torch.zeros(len(images), targets.valid.shape[1], *images.shape[-2:])
        for image, row in enumerate(targets.boxes_xyxy):
            for slot, (x0, y0, x1, y1) in enumerate(row.int().tolist()):
                masks[image, slot, y0:y1, x0:x1] = 1
        targets = targets._replace(masks=masks.to(torch.uint8))
    scale = torch.ones(*targets.valid.shape, 2)
    targets = targets._replace(mask_scale_xy=scale)
    return images, sizes, Targets(*(t if t.dim() == 1 else t[:, :slots] for t in targets))


def test_the_distance_is_opencvs_euclidean_distance():
    masks = torch.stack([disk(40, 12), disk(40, 5, center=(3, 30)), torch.zeros(40, 40) > 0])
    found = clipped_distance(masks, reach=9)
    for mask, distance in zip(masks[:2], found, strict=False):
        inside = mask.numpy().astype(np.uint8)
        to_edge = [
            cv2.distanceTransform(each, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) - 0.5
            for each in (inside, 1 - inside)
        ]
        wanted = np.where(inside, np.minimum(to_edge[0], 9), -np.minimum(to_edge[1], 9))
        np.testing.assert_allclose(distance.numpy(), wanted, atol=1e-4)
    assert (found[2] == -9).all(), "a mask without an outline is as far from it as can be told"


def test_damage_depends_on_the_seed_alone():
    masks = torch.stack([disk(64, 14 + each).float() for each in range(8)])
    neighbors, seeds = torch.zeros_like(masks), torch.arange(8) * 977 + 5
    whole = damage_masks(masks, neighbors, seed=seeds)
    alone = torch.cat(
        [damage_masks(masks[i : i + 1], neighbors[:1], seed=seeds[i : i + 1]) for i in range(8)]
    )
    assert torch.equal(whole, alone)
    assert not torch.equal(whole, damage_masks(masks, neighbors, seed=seeds + 1))


def test_damage_leaves_an_object_that_can_be_recognized():
    masks = torch.stack([disk(64, 10 + each % 16).float() for each in range(200)])
    damaged = damage_masks(masks, torch.zeros_like(masks), seed=torch.arange(200) * 31 + 7)
    assert set(damaged.unique().tolist()) == {0.0, 1.0}
    assert damaged.flatten(1).amax(1).min() == 1, "no mask vanishes"
    both, either = damaged * masks, torch.maximum(damaged, masks)
    iou = both.flatten(1).sum(1) / either.flatten(1).sum(1)
    assert 0.6 < iou.mean() < 0.95
    assert iou.min() < 0.7, "strong damage"
    assert iou.max() > 0.93, "weak damage"


def test_parts_of_neighbors_are_added():
    masks = disk(64, 12, center=(22, 32)).float().expand(64, 64, 64)
    neighbors = disk(64, 8, center=(46, 32)).float().expand(64, 64, 64)
    seeds = torch.arange(64) * 101
    with_neighbor = damage_masks(masks, neighbors, seed=seeds)
    without = damage_masks(masks, torch.zeros_like(masks), seed=seeds)
    taken = ((with_neighbor - without).clamp(min=0) * neighbors).flatten(1).sum(1) > 20
    assert 5 <= taken.sum() <= 40


@pytest.mark.parametrize(("squeeze", "cell_px"), SQUEEZES)
def test_a_new_refiner_returns_the_mask_that_it_was_given(squeeze: str, cell_px: int):
    model = build_model(tiny_refiner(squeeze, cell_px)).eval()
    masks = torch.stack([disk(128, 30), disk(128, 9, center=(100, 20)), torch.zeros(128, 128) > 0])
    refined = refine_masks(model, torch.rand(3, 128, 128) * 255, masks)
    both = (refined.masks & masks).flatten(1).sum(1)
    either = (refined.masks | masks).flatten(1).sum(1)
    assert (both[:2] / either[:2]).min() > 0.97
    assert not refined.masks[2].any()
    assert refined.confidence[2] == 0
    assert (refined.confidence[:2] > 0.2).all()


@pytest.mark.parametrize(("squeeze", "cell_px"), SQUEEZES)
def test_training_sharpens_damaged_masks(squeeze: str, cell_px: int):
    torch.manual_seed(0)
    model = build_model(tiny_refiner(squeeze, cell_px)).train()
    images, sizes, targets = with_masks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for step in range(30):
        now = targets._replace(sample_seed=torch.tensor([step * 7 + 1, step * 7 + 2]))
        losses = model(images, sizes, now)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        totals.append(losses["loss_mask"].item() + losses["loss_dice"].item())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert np.mean(totals[-8:]) < 0.7 * np.mean(totals[:8])


def test_crops_are_a_function_of_the_sample():
    images, _, targets = with_masks()
    config = tiny_refiner(crops_per_image=2)
    together = make_training_crops(images, targets, config=config)
    second = Targets(*(None if t is None else t[1:] for t in targets))
    alone = make_training_crops(images[1:], second, config=config)
    assert torch.equal(together.pixels[2:], alone.pixels)
    assert torch.equal(together.given[2:], alone.given)


def test_every_object_comes_once_before_any_comes_again():
    images, _, targets = with_masks()
    slots = int(targets.valid[0].sum())
    crops = make_training_crops(images, targets, config=tiny_refiner(crops_per_image=slots))
    ours = crops.truth[:slots]
    assert len({each.sum().item() for each in ours}) == slots


def test_a_batch_without_objects_is_a_valid_step():
    images, sizes, targets = with_masks(0)
    losses = build_model(tiny_refiner()).train()(images, sizes, targets)
    assert [value.item() for value in losses.values()] == [0.0, 0.0]


def test_missing_masks_are_an_error():
    images, sizes, targets = with_masks()
    with pytest.raises(ValueError, match="whole masks"):
        build_model(tiny_refiner())(images, sizes, targets._replace(masks=None))


@pytest.mark.parametrize(("squeeze", "cell_px"), [("none", 1), ("guided", 2)])
def test_a_step_on_a_gpu_never_asks_the_host(squeeze: str, cell_px: int):
    images, sizes, targets = with_masks()
    with fake_gpu(), torch.device("cuda"):
        model = build_model(tiny_refiner(squeeze, cell_px))
        moved = [torch.empty(t.shape, dtype=t.dtype) for t in (images, sizes, *targets)]
        with ForbidHostTensors():
            losses = model(moved[0], moved[1], Targets(*moved[2:]))
        assert {value.device.type for value in losses.values()} == {"cuda"}


def test_large_masks_take_large_crops():
    assert [choose_side(extent, (64, 96, 128)) for extent in (10, 64, 65, 128, 900)] == [
        64,
        64,
        96,
        128,
        128,
    ]


def test_a_mask_is_refined_alone_as_among_others():
    torch.manual_seed(0)
    model = build_model(tiny_refiner()).eval()
    torch.nn.init.normal_(model.correction.weight, std=0.1)
    image = torch.rand(3, 128, 128) * 255
    masks = torch.stack([disk(128, radius, center=(64, 60)) for radius in (30, 12, 25, 6)])
    together = refine_masks(model, image, masks)
    for row in range(4):
        alone = refine_masks(model, image, masks[row : row + 1])
        assert torch.equal(alone.masks[0], together.masks[row])


def test_folding_changes_neither_the_features_nor_the_model():
    config = BackboneConfig(name="tf_efficientnet_lite0", norm="frozen", freeze_at=5)
    trunk = build_backbone(config)[0].eval()
    generator = torch.Generator().manual_seed(0)
    for name, buffer in trunk.named_buffers():
        low = 0.5 if "var" in name else -0.1
        buffer.copy_(torch.rand(buffer.shape, generator=generator) + low)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    folded = fold_norms(trunk)
    kinds = {type(module).__name__ for module in folded.modules()}
    assert not {kind for kind in kinds if "Frozen" in kind}
    pixels = torch.rand(1, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        for ours, wanted in zip(folded(pixels), trunk(pixels), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max())
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_a_refiner_starts_from_the_weights_of_another(tmp_path):
    torch.manual_seed(0)
    first = build_model(tiny_refiner())
    save_weights(first, tmp_path / "refiner.safetensors")
    second = build_model(tiny_refiner(weights=str(tmp_path / "refiner.safetensors")))
    wanted = first.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in second.state_dict().items())
    with pytest.raises(ValueError, match=r"--model\.weights-leave-out .*squeeze"):
        build_model(tiny_refiner("guided", weights=str(tmp_path / "refiner.safetensors")))
