import torch
from torchvision.ops import roi_align

from bsm.configs.instance import BoxHeadConfig
from bsm.instance.box_ops import pairwise_iou
from bsm.instance.proposals import Proposals
from bsm.instance.roi import (
    assign_levels,
    find_used_slots,
    gather_rois,
    pool_finest,
    pool_rois,
    pool_without_sync,
    sample_rois,
)
from tests.bsm.synthetic import shapes_batch


def features_and_rois(num_rois: int = 60):
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(2, 5, 512 // s, 640 // s, generator=generator).requires_grad_()
        for s in (4, 8, 16, 32)
    ]
    size = 8 * 2 ** (torch.rand(num_rois, 2, generator=generator) * 7)
    start = torch.rand(num_rois, 2, generator=generator) * torch.tensor([600.0, 480.0])
    image = torch.randint(0, 2, (num_rois, 1), generator=generator).float()
    rois = torch.cat((image, start, start + size), dim=1)
    return features, rois


def per_level_reference(features, rois, side):
    """Pool the usual way: select the RoIs of each level."""
    out = torch.zeros(len(rois), features[0].shape[1], side, side)
    side_px = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = (4 + torch.log2(side_px / 224)).floor().clamp(2, 5).long() - 2
    for i, feature in enumerate(features):
        index = (level == i).nonzero().squeeze(1)
        out[index] = roi_align(
            feature, rois[index], side, 1 / 4 / 2**i, sampling_ratio=-1, aligned=True
        )
    return out, level


def test_pooling_takes_each_roi_from_its_level():
    features, rois = features_and_rois()
    expected, level = per_level_reference(features, rois, 7)
    assert set(level.tolist()) == {0, 1, 2, 3}
    assert torch.equal(assign_levels(rois[:, 1:]), level)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradient = torch.autograd.grad((expected * weight).sum(), features)
    for pooled in (
        pool_rois(features, rois, side=7),
        pool_without_sync(features, rois, level, side=7),
    ):
        assert torch.allclose(pooled, expected, atol=1e-6)
        got = torch.autograd.grad((pooled * weight).sum(), features)
        for a, b in zip(got, gradient, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_level_rule_at_its_edges():
    side = torch.tensor([1.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 2000.0])
    boxes = torch.stack((side * 0, side * 0, side, side), dim=1)
    assert assign_levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert assign_levels(torch.zeros(1, 4)).tolist() == [0]


def test_finest_ignores_the_size():
    features, rois = features_and_rois()
    expected = roi_align(features[0], rois, 28, 0.25, sampling_ratio=-1, aligned=True)
    assert torch.allclose(pool_finest(features[0], rois, side=28), expected)


def make_numbered_boxes(n: int, num: int):
    return torch.arange(num).expand(n, num)


def jitter_boxes(targets, num: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    n, t = targets.valid.shape
    boxes = targets.boxes_xyxy[:, torch.arange(num) % t]
    boxes = boxes + torch.randn(n, num, 4, generator=generator) * 8
    return Proposals(
        boxes.clamp(0, 64), torch.ones(n, num, dtype=torch.bool), make_numbered_boxes(n, num)
    )


CONFIG = BoxHeadConfig(samples_per_image=24)


def test_half_precision_features_do_not_move_the_boxes():
    feature = torch.randn(1, 4, 300, 300).bfloat16()
    rois = torch.tensor([[0.0, 1001.3, 1003.7, 1041.6, 1055.2]])
    exact = pool_finest(feature.float(), rois, side=7)
    pooled = pool_finest(feature, rois, side=7)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), exact, atol=0.02, rtol=0.02)


def test_sampled_rois_are_right():
    _, _, targets = shapes_batch()
    proposals = jitter_boxes(targets, 90, seed=0)
    rois = sample_rois(proposals, targets, config=CONFIG, num_classes=3)
    assert rois.boxes_xyxy.shape == (2, 24, 4)
    assert rois.valid.all()
    assert rois.foreground.sum(1).tolist() == [6, 6]
    for n in range(2):
        iou = pairwise_iou(rois.boxes_xyxy[n], targets.boxes_xyxy[n])
        assert torch.equal(iou.amax(1) >= 0.5, rois.foreground[n])
        assert torch.equal(iou.argmax(1)[:6], rois.target_slot[n][:6])
        own = targets.category_index[n, rois.target_slot[n]]
        assert torch.equal(rois.category_index[n][:6], own[:6])
        assert rois.category_index[n][6:].eq(3).all()


def test_targets_are_proposals_too():
    _, _, targets = shapes_batch()
    nothing = Proposals(
        torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool), make_numbered_boxes(2, 5)
    )
    rois = sample_rois(nothing, targets, config=CONFIG, num_classes=3)
    assert rois.valid.sum(1).tolist() == [3, 3]
    for n in range(2):
        got = sorted(rois.boxes_xyxy[n][rois.valid[n]].tolist())
        assert got == sorted(targets.boxes_xyxy[n].tolist())


def test_an_image_trains_the_same_rois_in_any_batch():
    _, _, targets = shapes_batch(num_images=4)
    proposals = jitter_boxes(targets, 90, seed=0)
    together = sample_rois(proposals, targets, config=CONFIG, num_classes=3)
    for n in range(4):
        one = slice(n, n + 1)
        alone = sample_rois(
            Proposals(*(t[one] for t in proposals)),
            type(targets)(*(t[one] for t in targets)),
            config=CONFIG,
            num_classes=3,
        )
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[n])
    other_seed = sample_rois(
        proposals,
        targets._replace(sample_seed=targets.sample_seed + 1),
        config=CONFIG,
        num_classes=3,
    )
    assert not torch.equal(other_seed.boxes_xyxy, together.boxes_xyxy)


def test_the_sample_does_not_depend_on_the_rank_of_a_proposal():
    _, _, targets = shapes_batch()
    proposals = jitter_boxes(targets, 90, seed=0)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    a = sample_rois(proposals, targets, config=CONFIG, num_classes=3)
    shuffled = Proposals(*(t[:, order] for t in proposals))
    b = sample_rois(shuffled, targets, config=CONFIG, num_classes=3)
    assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)


def test_more_empty_slots_change_nothing():
    _, _, targets = shapes_batch()
    proposals = jitter_boxes(targets, 90, seed=0)
    before = sample_rois(proposals, targets, config=CONFIG, num_classes=3)
    padded_targets = targets._replace(
        boxes_xyxy=torch.cat((targets.boxes_xyxy, torch.zeros(2, 4, 4)), 1),
        category_index=torch.cat((targets.category_index, torch.zeros(2, 4).long()), 1),
        valid=torch.cat((targets.valid, torch.zeros(2, 4).bool()), 1),
    )
    padded = Proposals(
        torch.cat((proposals.boxes_xyxy, torch.zeros(2, 7, 4)), 1),
        torch.cat((proposals.valid, torch.zeros(2, 7).bool()), 1),
        torch.cat((proposals.identity, torch.zeros(2, 7).long()), 1),
    )
    after = sample_rois(padded, padded_targets, config=CONFIG, num_classes=3)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


def test_at_least_one_slot_is_used():
    valid = torch.tensor([[True, False], [False, True]])
    assert find_used_slots(valid).tolist() == [0, 3]
    assert find_used_slots(torch.zeros(2, 2).bool()).tolist() == [0]
    boxes = torch.arange(16.0).view(2, 2, 4)
    rois = gather_rois(boxes, find_used_slots(valid))
    assert rois.tolist() == [[0, 0, 1, 2, 3], [1, 12, 13, 14, 15]]
