"""A model continues the categories of a file under other indices, and starts others at random."""

from dataclasses import replace

import pytest
import torch

from bsm.build import build_model
from bsm.checkpoints.weights import save_weights
from tests.bsm.semantic import label_maps
from tests.bsm.synthetic import shapes_batch, tiny_config

ORDER = (2, 0, 3, 1)
"""The file's category that each of ours continues."""


def save_random(config, path) -> str:
    """Save a model whose predictions depend on every category."""
    torch.manual_seed(3)
    model = build_model(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("scores.bias"):
                value[-1] = -3.0  # the background
            elif name.endswith("bias"):
                value.normal_(std=0.5)
    save_weights(model, path)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "boxes"), [("squeeze", "single"), ("pointrend", "single"), ("plain", "cascade")]
)
def test_detections_have_the_new_index_of_their_category(kind, boxes, tmp_path):
    config = tiny_config(kind=kind, boxes=boxes, num_classes=4)
    # Which cells PointRend subdivides depends on the order of sums.
    points = replace(config.mask_head.pointrend, subdivisions=0)
    config = replace(
        config,
        box_head=replace(config.box_head, detections_per_image=200),
        mask_head=replace(config.mask_head, pointrend=points),
    )
    weights = save_random(config, tmp_path / "w.safetensors")
    before = build_model(replace(config, weights=weights)).eval()
    after = build_model(replace(config, weights=weights, weights_categories=ORDER)).eval()
    images, sizes, _ = shapes_batch()
    theirs, ours = (model(images, sizes) for model in (before, after))
    assert len(ours.category_index[ours.valid].unique()) > 1
    assert torch.equal(torch.tensor(ORDER)[ours.category_index] * ours.valid, theirs.category_index)
    assert torch.allclose(ours.boxes_xyxy, theirs.boxes_xyxy, atol=1e-3)
    assert torch.allclose(ours.mask_probs, theirs.mask_probs, atol=1e-5)


@pytest.mark.parametrize("head", ["plain", "pointrend", "squeeze"])
def test_label_maps_have_the_new_index_of_their_class(head, tmp_path):
    config = label_maps.tiny_config(kind=head, num_classes=4)
    weights = save_random(config, tmp_path / "w.safetensors")
    before = build_model(replace(config, weights=weights)).eval()
    after = build_model(replace(config, weights=weights, weights_categories=ORDER)).eval()
    images, sizes, _ = shapes_batch()
    with torch.no_grad():
        theirs, ours = (model(images, sizes) for model in (before, after))
    assert torch.allclose(ours, theirs[:, list(ORDER)], atol=1e-4)


def test_categories_without_a_counterpart_start_at_random(tmp_path):
    config = tiny_config(kind="plain", num_classes=4)
    weights = save_random(config, tmp_path / "w.safetensors")
    source = build_model(replace(config, weights=weights)).state_dict()
    smaller = replace(config, num_classes=2)
    torch.manual_seed(7)
    fresh = build_model(smaller).state_dict()
    torch.manual_seed(7)
    model = build_model(replace(smaller, weights=weights, weights_categories=(-1, 3)))
    state = model.state_dict()
    scores, deltas = state["box_head.scores.weight"], state["box_head.deltas.weight"]
    assert torch.equal(scores[0], fresh["box_head.scores.weight"][0])
    assert torch.equal(scores[1:], source["box_head.scores.weight"][3:])  # and the background
    assert torch.equal(deltas[:4], fresh["box_head.deltas.weight"][:4])
    assert torch.equal(deltas[4:], source["box_head.deltas.weight"][12:])
    masks = "mask_head.mask.logits.bias"
    assert torch.equal(state[masks][1], source[masks][3])
    assert torch.equal(state["box_head.fc1.weight"], source["box_head.fc1.weight"])


def test_a_file_with_fewer_categories_is_refused(tmp_path):
    config = tiny_config(kind="plain", num_classes=3)
    weights = save_random(config, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="asks for category 3, counted from 0, and the file has 3"):
        build_model(replace(config, weights=weights, weights_categories=(0, 3, 1)))


def test_each_category_needs_an_entry():
    config = tiny_config(num_classes=3)
    with pytest.raises(ValueError, match="needs an entry for each of the 3 categories, got 2"):
        replace(config, weights="w.safetensors", weights_categories=(0, 1))
    with pytest.raises(ValueError, match="needs weights to take categories from"):
        replace(config, weights_categories=(0, 1, 2))


def test_all_categories_may_start_at_random(tmp_path):
    config = tiny_config(kind="plain", num_classes=3)
    weights = save_random(config, tmp_path / "w.safetensors")
    source = build_model(replace(config, weights=weights)).state_dict()
    model = build_model(
        replace(config, num_classes=2, weights=weights, weights_categories=(-1, -1))
    )
    scores = model.state_dict()["box_head.scores.weight"]
    assert torch.equal(scores[2], source["box_head.scores.weight"][3])  # the background
    assert not torch.equal(scores[:2], source["box_head.scores.weight"][:2])
