"""The cache of a frozen backbone's features gives the backbone's own bits."""

from dataclasses import replace

import pytest
import torch

from bsm.backbone import FpnBackbone, extract_features
from bsm.configs.shared import FpnBackboneConfig
from pipeline.study.features import CachedBackbone

FROZEN = FpnBackboneConfig(name="resnet10t", norm="frozen", freeze_at=5, fpn_channels=8)


def build(config: FpnBackboneConfig = FROZEN, seed: int = 0) -> FpnBackbone:
    torch.manual_seed(seed)
    return FpnBackbone(config)


def make_images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 96), generator=generator).to(torch.uint8)
    sizes = torch.tensor([[64, 96], [50, 70]])
    images[1, :, 50:] = 0
    images[1, :, :, 70:] = 0
    return images, sizes


def test_a_stored_feature_is_bit_equal_to_a_computed_one(tmp_path, monkeypatch):
    backbone, (images, sizes) = build(), make_images()
    cached = CachedBackbone(backbone, tmp_path)
    alone = backbone(images[:1], sizes[:1])
    cold = cached(images[:1], sizes[:1])
    assert all(torch.equal(a, b) for a, b in zip(cold, alone, strict=True))
    computed = extract_features(backbone.trunk, backbone.normalize(images[:1], sizes[:1]))
    both = cached(images, sizes)
    # Nothing is computed again.
    monkeypatch.setattr(CachedBackbone, "_compute_features", None)
    stored = CachedBackbone(backbone, tmp_path).read_features(images[0])
    assert all(torch.equal(a, b) for a, b in zip(stored, computed, strict=True))
    warm = CachedBackbone(backbone, tmp_path)(images, sizes)
    assert all(torch.equal(a, b) for a, b in zip(both, warm, strict=True))
    # A smaller image of the batch has zeros beyond its own multiple of 32.
    assert [tuple(level.shape) for level in both[:2]] == [(2, 8, 16, 24), (2, 8, 8, 12)]


def test_the_pyramid_learns_through_stored_features(tmp_path):
    cached, (images, sizes) = CachedBackbone(build(), tmp_path), make_images()
    sum(level.sum() for level in cached(images, sizes)).backward()
    grads = {name: p.grad is not None for name, p in cached.named_parameters() if p.requires_grad}
    assert grads
    assert all(grads.values())


def test_other_pixels_and_other_weights_are_other_entries(tmp_path):
    cached, (images, sizes) = CachedBackbone(build(), tmp_path), make_images()
    cached(images, sizes)
    cached(images.flip(-1)[:1], sizes[:1])
    assert len(list(cached.folder.iterdir())) == 3
    assert CachedBackbone(build(seed=1), tmp_path).folder != cached.folder
    darker = replace(FROZEN, pixel_mean=(0.0, 0.0, 0.0))
    assert CachedBackbone(build(darker), tmp_path).folder != cached.folder


def test_a_backbone_that_trains_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="Freeze it"):
        CachedBackbone(build(replace(FROZEN, freeze_at=2)), tmp_path)
