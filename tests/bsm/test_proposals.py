import torch

from bsm.configs.instance import ProposalConfig
from bsm.instance.box_ops import pairwise_iou
from bsm.instance.proposals import ProposalNetwork, make_anchors, match_anchors
from bsm.sampling import ANCHORS, ROIS, draw_keys, subsample
from tests.bsm.synthetic import model_config, shapes_batch, targets_from

CONFIG = ProposalConfig(
    anchor_sizes_px=(16.0, 32.0, 64.0, 128.0, 256.0),
    top_k_before_nms_train=50,
    top_k_after_nms=40,
    samples_per_image=32,
)


def pyramid(n: int, height: int, width: int, channels: int = 4, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, channels, -(-height // s), -(-width // s), generator=generator)
        for s in (4, 8, 16, 32, 64)
    ]


def test_anchors_are_detectron2s():
    anchors = make_anchors(pyramid(1, 64, 96), torch.tensor([[64, 96]]), config=ProposalConfig())
    assert anchors.level_sizes == (16 * 24 * 3, 8 * 12 * 3, 4 * 6 * 3, 2 * 3 * 3, 1 * 2 * 3)
    # detectron2's DefaultAnchorGenerator for size 32 at ratios 0.5, 1, 2, not rounded.
    expected = torch.tensor(
        [
            [-22.6274, -11.3137, 22.6274, 11.3137],
            [-16.0, -16.0, 16.0, 16.0],
            [-11.3137, -22.6274, 11.3137, 22.6274],
        ]
    )
    assert torch.allclose(anchors.boxes_xyxy[:3], expected, atol=1e-4)
    # The next cell is one stride to the right, the next row one stride down.
    assert torch.allclose(
        anchors.boxes_xyxy[3:6] - anchors.boxes_xyxy[:3], torch.tensor([4.0, 0, 4, 0])
    )
    assert torch.allclose(
        anchors.boxes_xyxy[24 * 3 : 24 * 3 + 3] - anchors.boxes_xyxy[:3],
        torch.tensor([0, 4.0, 0, 4]),
    )
    assert len(anchors.identity.unique()) == len(anchors.identity)


def test_matching_follows_the_thresholds_and_keeps_every_target():
    _, sizes, targets = shapes_batch()
    # No anchor fits the size of one object: only the low quality rule matches it.
    boxes = targets.boxes_xyxy.clone()
    boxes[0, 0] = torch.tensor([10.0, 10.0, 14.0, 13.0])
    targets = targets._replace(boxes_xyxy=boxes)
    anchors = make_anchors(pyramid(2, 64, 64), sizes, config=CONFIG)
    matched, positive, negative = match_anchors(anchors, targets, config=CONFIG)
    assert not (positive & negative).any()
    for n in range(2):
        iou = pairwise_iou(boxes[n], anchors.boxes_xyxy)
        best = iou.amax(0)
        low_quality = (iou == iou.amax(1, keepdim=True)).any(0)
        assert torch.equal(positive[n], (best >= 0.7) | low_quality)
        assert torch.equal(negative[n], (best < 0.3) & ~low_quality)
        assert set(matched[n][positive[n]].tolist()) == {0, 1, 2}
    assert pairwise_iou(boxes[0, :1], anchors.boxes_xyxy).max() < 0.3


def test_an_image_trains_the_same_anchors_in_any_batch():
    _, sizes, targets = shapes_batch(num_images=4)
    small = make_anchors(pyramid(1, 64, 64), sizes[2:3], config=CONFIG)
    large = make_anchors(pyramid(4, 96, 128), sizes, config=CONFIG)
    picked = []
    for anchors, of in ((small, slice(2, 3)), (large, slice(0, 4))):
        part = type(targets)(*(t[of] for t in targets))
        _, positive, negative = match_anchors(anchors, part, config=CONFIG)
        keys = draw_keys(part.sample_seed, anchors.identity, purpose=ANCHORS)
        slots = subsample(positive, negative, keys, num_slots=32, max_positive=16)
        row = 0 if of.start == 2 else 2
        assert slots.valid[row].all()
        picked.append((anchors.identity[slots.candidate[row]], slots.positive[row]))
    assert torch.equal(picked[0][0], picked[1][0])
    assert torch.equal(picked[0][1], picked[1][1])


def test_keys_differ_by_seed_and_purpose_and_are_uniform():
    index = torch.arange(20000)
    seeds = torch.tensor([0, 1, 2**40, 2**62 + 12345, -5])
    keys = draw_keys(seeds, index, purpose=ANCHORS)
    assert (keys >= 0).all()
    for row in keys:
        assert len(row.unique()) == len(index)
    share = (keys >> 31).double() / 2**31
    assert (share.mean(1) - 0.5).abs().max() < 0.01
    histogram = torch.stack([torch.histc(row, bins=20, min=0, max=1) for row in share])
    assert ((histogram - 1000) ** 2 / 1000).sum(1).max() < 50  # chi squared, 19 degrees
    correlation = torch.corrcoef(torch.cat((share, (draw_keys(seeds, index, purpose=ROIS) >> 31))))
    assert (correlation - torch.eye(10)).abs().max() < 0.03


def test_subsample_fills_up_with_negatives_without_repetition():
    keys = draw_keys(torch.tensor([3, 4, 5]), torch.arange(50), purpose=ROIS)
    positive = torch.zeros(3, 50, dtype=torch.bool)
    positive[0, :20], positive[1, :2] = True, True
    negative = ~positive
    negative[2, 5:] = False
    slots = subsample(positive, negative, keys, num_slots=16, max_positive=4)
    assert slots.positive.sum(1).tolist() == [4, 2, 0]
    assert slots.valid.sum(1).tolist() == [16, 16, 5]
    for n in range(3):
        chosen = slots.candidate[n][slots.valid[n]]
        assert len(chosen.unique()) == len(chosen)
        assert torch.equal(positive[n, chosen], slots.positive[n][slots.valid[n]])


def test_losses_without_objects_are_finite_and_reach_every_parameter():
    network = ProposalNetwork(model_config(4, proposals=CONFIG))
    features = pyramid(2, 64, 64)
    sizes = torch.tensor([[64, 64], [40, 50]])
    targets = targets_from(
        torch.zeros(2, 1, 64, 64, dtype=torch.uint8), torch.zeros(2, 1, 4), torch.zeros(2, 1).long()
    )._replace(valid=torch.zeros(2, 1, dtype=torch.bool))
    anchors = make_anchors(features, sizes, config=CONFIG)
    losses = network.losses(*network(features), anchors, targets)
    assert losses["loss_proposal_box"] == 0
    assert torch.isfinite(losses["loss_objectness"])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_normalizer_is_256_times_n_even_if_fewer_anchors_were_sampled():
    network = ProposalNetwork(model_config(4))
    features = pyramid(1, 32, 32)
    anchors = make_anchors(features, torch.tensor([[32, 32]]), config=ProposalConfig())
    # 8 * 8 * 3 + ... = 261 anchors, but only those of the top rows are in the image.
    sizes = torch.tensor([[3, 32]])
    anchors = make_anchors(features, sizes, config=ProposalConfig())
    targets = targets_from(
        torch.zeros(1, 1, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 4), torch.zeros(1, 1).long()
    )._replace(valid=torch.zeros(1, 1, dtype=torch.bool))
    logits, deltas = network(features)
    inside = anchors.inside[0]
    assert inside.sum() == 3 * (8 + 4 + 2 + 1 + 1)
    loss = network.losses(logits, deltas, anchors, targets)["loss_objectness"]
    expected = torch.nn.functional.softplus(logits[0][inside]).sum() / 256
    assert torch.allclose(loss, expected)


def test_proposals_are_best_first_and_inside_the_image():
    torch.manual_seed(0)
    network = ProposalNetwork(model_config(4, proposals=CONFIG))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features = pyramid(2, 64, 96)
    sizes = torch.tensor([[64, 96], [33, 41]])
    anchors = make_anchors(features, sizes, config=CONFIG)
    logits, deltas = network(features)
    proposals = network.propose(logits, deltas, anchors, sizes)
    assert proposals.boxes_xyxy.shape == (2, 40, 4)
    for n, (height, width) in enumerate(sizes.tolist()):
        boxes = proposals.boxes_xyxy[n][proposals.valid[n]]
        assert len(boxes) > 5
        assert (boxes >= 0).all()
        assert (boxes[:, 0::2] <= width).all()
        assert (boxes[:, 1::2] <= height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    # A high score in the padding changes nothing.
    loud = logits.clone()
    loud[1][~anchors.inside[1]] = 100.0
    again = network.propose(loud, deltas, anchors, sizes)
    assert torch.equal(
        again.boxes_xyxy[1][again.valid[1]], proposals.boxes_xyxy[1][proposals.valid[1]]
    )
