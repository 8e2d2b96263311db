import torch
from torchvision.ops import batched_nms, box_iou

from bsm.configs.instance import BoxHeadConfig
from bsm.instance.box_ops import (
    SCALE_CLAMP,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    pairwise_iou,
)
from bsm.instance.boxes import CODE_WEIGHTS, BoxHead, box_losses, detect_boxes
from bsm.instance.roi import SampledRois
from tests.bsm.synthetic import model_config


def random_boxes(n: int, generator: torch.Generator, *, side: float = 100.0):
    start = torch.rand(n, 2, generator=generator) * side * 0.7
    return torch.cat((start, start + 1 + torch.rand(n, 2, generator=generator) * side * 0.3), dim=1)


def test_iou_is_torchvisions():
    generator = torch.Generator().manual_seed(0)
    a, b = random_boxes(40, generator), random_boxes(30, generator)
    assert torch.allclose(pairwise_iou(a, b), box_iou(a, b), atol=1e-6)
    empty = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert pairwise_iou(empty, empty).item() == 0.0


def test_decoding_undoes_encoding():
    generator = torch.Generator().manual_seed(0)
    a, b = random_boxes(200, generator), random_boxes(200, generator)
    for weights in ((1.0, 1.0), (10.0, 5.0)):
        code = encode_boxes(a, b, weights=weights)
        assert torch.allclose(decode_boxes(code, a, weights=weights), b, atol=1e-3)


def test_the_regression_is_detectron2s():
    box, target = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[5.0, 0.0, 25.0, 20.0]])
    code = encode_boxes(box, target, weights=(10.0, 5.0))
    expected = torch.tensor([[10.0, 0.0, 5.0 * torch.log(torch.tensor(2.0)).item(), 0.0]])
    assert torch.allclose(code, expected)


def test_growth_is_clamped_and_empty_boxes_encode_to_zero():
    box = torch.tensor([[10.0, 10.0, 26.0, 26.0]])
    grown = decode_boxes(torch.tensor([[0.0, 0.0, 50.0, 50.0]]), box, weights=(1.0, 1.0))
    assert torch.allclose(grown[0, 2:] - grown[0, :2], torch.tensor([1000.0, 1000.0]), rtol=1e-5)
    assert abs(SCALE_CLAMP - 4.135166556742356) < 1e-12
    zero = torch.zeros(1, 4)
    assert torch.equal(encode_boxes(box, zero, weights=(1.0, 1.0)), zero)
    assert torch.equal(encode_boxes(zero, box, weights=(1.0, 1.0)), zero)


def test_clipping_uses_each_images_size():
    boxes = torch.tensor([[-5.0, -5.0, 500.0, 500.0]]).expand(2, 3, 4)
    clipped = clip_boxes(boxes, torch.tensor([[40, 60], [80, 20]]))
    assert clipped[:, 0].tolist() == [[0, 0, 60, 40], [0, 0, 20, 80]]


def test_init_values():
    torch.manual_seed(0)
    head = BoxHead(model_config(64, num_classes=80))
    assert head.scores.weight.shape == (81, 1024)
    assert head.deltas.weight.shape == (320, 1024)
    assert abs(head.scores.weight.std().item() - 0.01) < 5e-4
    assert abs(head.deltas.weight.std().item() - 0.001) < 5e-5
    bound = (3 / head.fc1.in_features) ** 0.5  # c2_xavier_fill
    assert head.fc1.weight.abs().max() <= bound
    assert head.fc1.weight.abs().max() > 0.99 * bound
    assert all(layer.bias.eq(0).all() for layer in (head.fc1, head.fc2, head.scores, head.deltas))


def test_losses_count_real_rois_only_and_regress_the_own_category():
    generator = torch.Generator().manual_seed(0)
    num_classes = 3
    boxes = random_boxes(4, generator)[None]
    target_boxes = random_boxes(2, generator)[None]
    rois = SampledRois(
        boxes_xyxy=boxes,
        category_index=torch.tensor([[2, 3, 3, 3]]),
        target_slot=torch.tensor([[1, 0, 0, 0]]),
        foreground=torch.tensor([[True, False, False, False]]),
        valid=torch.tensor([[True, True, True, False]]),
    )
    logits = torch.randn(4, num_classes + 1, generator=generator)
    deltas = torch.randn(4, num_classes, 4, generator=generator)
    losses = box_losses(
        logits, deltas, rois=rois, target_boxes_xyxy=target_boxes, used=torch.arange(4)
    )
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs[0, 2] + log_probs[1, 3] + log_probs[2, 3]) / 3
    assert torch.allclose(losses["loss_class"], entropy)
    code = encode_boxes(boxes[0, 0], target_boxes[0, 1], weights=(10.0, 5.0))
    assert torch.allclose(losses["loss_box"], (deltas[0, 2] - code).abs().sum() / 3)


def test_detections_are_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(3)
    config = BoxHeadConfig(detections_per_image=12)
    n, p, k = 2, 60, 4
    boxes = torch.stack([random_boxes(p, generator) for _ in range(n)])
    valid = torch.rand(n, p, generator=generator) > 0.2
    logits = torch.randn(n * p, k + 1, generator=generator) * 2
    deltas = torch.randn(n * p, k, 4, generator=generator)
    sizes = torch.tensor([[100, 90], [70, 100]])
    every = decode_boxes(deltas.view(n, p, k, 4), boxes[:, :, None], weights=CODE_WEIGHTS)
    found = detect_boxes(
        logits.view(n, p, k + 1).softmax(-1)[..., :k],
        every,
        valid=valid,
        image_sizes_hw=sizes,
        config=config,
    )
    assert found.boxes_xyxy.shape == (n, 12, 4)
    for i in range(n):
        probs = logits.view(n, p, k + 1)[i].softmax(-1)[:, :k]
        decoded = decode_boxes(deltas.view(n, p, k, 4)[i], boxes[i][:, None], weights=(10.0, 5.0))
        decoded = clip_boxes(decoded[None], sizes[i : i + 1])[0]
        roi, category = ((probs > 0.05) & valid[i][:, None]).nonzero(as_tuple=True)
        keep = batched_nms(decoded[roi, category], probs[roi, category], category, 0.5)[:12]
        assert torch.allclose(found.scores[i], probs[roi, category][keep])
        assert torch.equal(found.category_index[i], category[keep])
        assert torch.allclose(found.boxes_xyxy[i], decoded[roi, category][keep], atol=1e-4)
        assert found.scores[i].diff().le(0).all()


def test_fewer_candidates_than_slots_leave_empty_slots():
    config = BoxHeadConfig(detections_per_image=10)
    found = detect_boxes(
        torch.tensor([[[0.99], [0.01]]]),
        torch.tensor([0.0, 0.0, 9.0, 9.0]).expand(1, 2, 1, 4),
        valid=torch.ones(1, 2).bool(),
        image_sizes_hw=torch.tensor([[20, 20]]),
        config=config,
    )
    assert found.valid.tolist() == [[True] + [False] * 9]
    assert found.boxes_xyxy[0, 1:].eq(0).all()
