"""Fine stages against a plain reference: one RoI at a time, bands by distances of all cells."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import roi_align

from bsm.checkpoints.weights import copy_state
from bsm.configs.instance import FineStagesConfig, MaskHeadConfig
from bsm.configs.shared import SqueezeConfig, TargetConfig
from bsm.field import sample_field
from bsm.instance.mask_heads.build import build_mask_head
from bsm.instance.mask_heads.fine_stages import FineStages, find_band, find_large
from bsm.instance.roi_targets import MaskRois
from tests.bsm.synthetic import model_config, shapes_batch

HEADS = {
    "plain": MaskHeadConfig(kind="plain"),
    "bmask": MaskHeadConfig(kind="bmask"),
    "squeeze": MaskHeadConfig(squeeze=SqueezeConfig(warp="none")),
    "light": MaskHeadConfig(squeeze=SqueezeConfig(variant="light", light_channels=4)),
}


def head_of(name: str, *, width: int = 8, num_classes: int = 3, **options):
    torch.manual_seed(0)
    fine = FineStagesConfig(**{"channels": (6, 4), **options})
    config = dataclasses.replace(HEADS[name], channels=width, num_convs=1, fine_stages=fine)
    return build_mask_head(model_config(width, num_classes=num_classes, mask_head=config))


def wake(stages: FineStages) -> FineStages:
    """Give the stages corrections that change every mask."""
    for name, parameter in stages.named_parameters():
        if "correction" in name:
            torch.nn.init.normal_(parameter, std=2.0)
    return stages


def make_inputs(width: int = 8):
    _, _, targets = shapes_batch()
    n, t = targets.valid.shape
    boxes = targets.boxes_xyxy.flatten(0, 1) + 1.5
    image = torch.arange(n).repeat_interleave(t)
    rois = MaskRois(
        torch.cat([image[:, None].float(), boxes], dim=1),
        targets.category_index.flatten(),
        torch.arange(t).repeat(n),
        torch.tensor([1.0, 1, 1, 1, 1, 0]),
        torch.arange(t).repeat(n),
    )
    generator = torch.Generator().manual_seed(1)
    pyramid = [torch.randn(n, width, 64 // s, 64 // s, generator=generator) for s in (4, 8, 16, 32)]
    features = torch.randn(n * t, width, 14, 14, generator=generator)
    logits = 3 * torch.randn(n * t, 28, 28, generator=generator)
    return pyramid, rois, targets, features, logits


def run_stage(stage, finest, roi, features, logits):
    """Run a stage on one RoI, with torch's own operations."""
    side = logits.shape[-1]
    narrow = F.conv2d(finest, stage.narrow.weight, stage.narrow.bias)
    fine = roi_align(narrow, roi[None], side, 1 / 4, sampling_ratio=1, aligned=True)
    up = F.conv_transpose2d(features, stage.upsample.weight, stage.upsample.bias, stride=2)
    hidden = torch.cat([(up + fine).relu(), logits.sigmoid()[None, None]], dim=1)
    for conv in (stage.convs[0][0], stage.convs[1][0]):
        hidden = F.conv2d(hidden, conv.weight, conv.bias, padding=1).relu()
    correction = (hidden * stage.correction.weight[0][None]).sum(1) + stage.correction.bias
    return hidden, logits + correction[0]


def double(logits):
    scale = {"scale_factor": 2.0, "mode": "bilinear", "align_corners": False}
    return F.interpolate(logits[None, None], **scale)[0, 0]


def near_outline(mask, reach: int):
    """Find the cells of a mask with a cell of the other kind within `reach`."""
    at = torch.stack(torch.meshgrid(*map(torch.arange, mask.shape), indexing="ij"), -1).view(-1, 2)
    close = (at[:, None] - at).abs().amax(-1) <= reach
    return ((mask.flatten()[:, None] != mask.flatten()) & close).any(1).view(mask.shape)


def test_stages_equal_a_plain_reference():
    pyramid, rois, _, features, logits = make_inputs()
    stages = wake(head_of("plain").fine)
    found = stages(pyramid, rois.rois, features, logits)
    assert found.shape == (6, 56, 56)
    for index, roi in enumerate(rois.rois):
        one, hidden = logits[index], features[index][None]
        hidden, one = run_stage(stages.stages[0], pyramid[0], roi, hidden, one)
        _, one = run_stage(stages.stages[1], pyramid[0], roi, hidden, double(one))
        assert torch.allclose(found[index], one, atol=1e-4)


@pytest.mark.parametrize("source", ["field", "roi"])
def test_the_loss_compares_upsampled_logits_with_the_object(source: str):
    pyramid, rois, targets, features, logits = make_inputs()
    stages = wake(head_of("plain").fine)
    stages.config = dataclasses.replace(stages.config, targets=TargetConfig(source=source))
    losses = stages.losses(pyramid, rois, targets, features=features, logits=logits)
    fine = stages(pyramid, rois.rois, features, logits)
    parts = []
    for index in range(5):  # the last RoI has no object
        image, slot = int(rois.image_index[index]), int(rois.target_slot[index])
        box = rois.boxes_xyxy[index][None]
        if source == "field":
            field = targets.squeeze_field[image, slot][None]
            frame = targets.field_frame_xyxy[image, slot][None]
            wanted = sample_field(field, frame, box, side=112)[0] > 0
        else:
            mask = targets.masks[image, slot][None, None].float()
            roi = torch.cat([torch.zeros(1, 1), box], 1)
            wanted = roi_align(mask, roi, 112, aligned=True)[0, 0] >= 0.5
        parts.append(F.binary_cross_entropy_with_logits(double(fine[index]), wanted.float()))
    assert losses.keys() == {"loss_mask_fine"}
    assert losses["loss_mask_fine"].item() == pytest.approx(torch.stack(parts).mean().item(), 1e-5)


def test_with_a_band_only_cells_near_the_outline_are_replaced_and_trained():
    pyramid, rois, targets, features, logits = make_inputs()
    stages = wake(head_of("plain", boundary_band=2, loss_side=56).fine)
    found = stages(pyramid, rois.rois, features, logits)
    (first, _), (second, coarse) = stages._refine(pyramid, rois.rois, features, logits)
    assert torch.equal(coarse, first)
    stages.config = dataclasses.replace(stages.config, targets=TargetConfig(source="roi"))
    parts = []
    for index in range(6):
        near = near_outline(first[index] > 0, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert 0 < near.float().mean() <= 1
        expected = torch.where(near, second[index], double(first[index]))
        assert torch.allclose(found[index], expected, atol=1e-6)
        mask = targets.masks[rois.image_index[index], rois.target_slot[index]][None, None].float()
        roi = torch.cat([torch.zeros(1), rois.boxes_xyxy[index]])[None]
        small, large = (roi_align(mask, roi, s, aligned=True)[0, 0] >= 0.5 for s in (28, 56))
        outline = near_outline(small, 2).repeat_interleave(2, 0).repeat_interleave(2, 1) | near
        entropy = F.binary_cross_entropy_with_logits
        parts.append(
            entropy(second[index][outline], large[outline].float())
            + entropy(first[index], small.float())
        )
    loss = stages.losses(pyramid, rois, targets, features=features, logits=logits)
    expected = torch.stack(parts[:5]).mean().item()
    assert loss["loss_mask_fine"].item() == pytest.approx(expected, rel=1e-5)


def test_a_band_needs_no_values():
    """On the meta device reading a value raises; test_fake_cuda.py has the rest."""
    with torch.device("meta"):
        head = head_of("plain", large_channels=3, boundary_band=2)
    pyramid, rois, targets, _, _ = make_inputs()
    moved = [p.to("meta") for p in pyramid]
    rois, targets = (type(each)(*(t.to("meta") for t in each)) for each in (rois, targets))
    sum(head.losses(moved, rois, targets).values()).backward()
    assert head.predict(moved, rois.rois, rois.category_index).shape == (6, 112, 112)


def test_bands_are_chessboard_distances():
    mask = torch.rand(2, 20, 20, generator=torch.Generator().manual_seed(0)) > 0.97
    for reach in (1, 3):
        expected = torch.stack([near_outline(each, reach) for each in mask])
        assert torch.equal(find_band(mask, reach=reach), expected)


def test_the_largest_objects_of_each_image_are_found():
    sides = torch.tensor([10.0, 40, 30, 50, 20, 50, 60])
    image = torch.tensor([0.0, 0, 0, 0, 1, 1, 1])
    rois = torch.stack([image, image * 0, image * 0, sides, sides], dim=1)
    index, large = find_large(rois, num_images=2, per_image=2, min_side_px=25)
    assert len(index.unique()) == len(index) == 4
    assert sorted(index[large].tolist()) == [1, 3, 5, 6]
    index, large = find_large(rois, num_images=2, per_image=3, min_side_px=45)
    assert sorted(index[large].tolist()) == [3, 5, 6]
    assert len(find_large(rois[:1], num_images=2, per_image=3, min_side_px=5)[0]) == 1


def test_only_large_objects_have_the_finest_stage():
    pyramid, rois, _, features, logits = make_inputs()
    options = {"large_channels": 3, "large_per_image": 1, "large_side_px": 1}
    stages = wake(head_of("plain", **options).fine)
    found = stages(pyramid, rois.rois, features, logits)
    assert found.shape == (6, 112, 112)
    *_, (_, coarse) = stages._refine(pyramid, rois.rois, features, logits)
    boxes = rois.boxes_xyxy
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).view(2, 3)
    refined = [int(image * 3 + area[image].argmax()) for image in range(2)]
    changed = [i for i in range(6) if not torch.allclose(found[i], double(coarse[i]), atol=1e-5)]
    assert changed == refined
    # An object's mask does not depend on the other images of the batch.
    alone = stages([p[:1] for p in pyramid], rois.rois[:3], features[:3], logits[:3])
    assert torch.allclose(alone, found[:3], atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_every_dense_head_takes_them_and_learns_through_them(name: str):
    head = head_of(name)
    pyramid, rois, targets, _, _ = make_inputs()
    losses = head.losses(pyramid, rois, targets)
    assert "loss_mask_fine" in losses
    sum(losses.values()).backward()
    assert [key for key, p in head.named_parameters() if p.grad is None] == []
    masks = head.predict(pyramid, rois.rois, rois.category_index)
    assert masks.shape == (6, 56, 56)
    # At first the corrections are small: the mask is the head's own, upsampled.
    plain = head_of(name, channels=())
    plain.load_state_dict({k: v for k, v in head.state_dict().items() if "fine." not in k})
    own = plain.predict(pyramid, rois.rois, rois.category_index)
    assert own.shape == (6, 28, 28)
    assert torch.allclose(masks, torch.stack([double(each) for each in own]), atol=0.05)


@pytest.mark.parametrize("name", HEADS)
def test_without_stages_a_head_has_the_old_parameters_and_losses(name: str):
    head = head_of(name, channels=())
    assert [key for key in head.state_dict() if key.startswith("fine.")] == []
    pyramid, rois, targets, features, logits = make_inputs()
    assert "loss_mask_fine" not in head.losses(pyramid, rois, targets)
    assert head.fine(pyramid, rois.rois, features, logits) is logits


def test_weights_of_a_head_without_stages_start_one_with_them():
    old, new = head_of("bmask", channels=()), head_of("bmask")
    for parameter in old.parameters():
        torch.nn.init.ones_(parameter)
    copy_state(new, old.state_dict(), source="old.safetensors", leave_out=("fine",))
    assert torch.equal(new.mask.deconv.weight, old.mask.deconv.weight)
    with pytest.raises(ValueError, match=r"missing: fine\."):
        copy_state(new, old.state_dict(), source="old.safetensors")


def test_corrections_are_the_same_layer_for_all_categories():
    counts = {
        sum(p.numel() for p in head_of("plain", num_classes=n).fine.parameters()) for n in (1, 80)
    }
    assert len(counts) == 1


def test_light_with_stages_stays_within_its_share_of_a_plain_head():
    def count_gmac(head: MaskHeadConfig, *, rois: int) -> float:
        with torch.device("meta"):
            built = build_mask_head(model_config(256, num_classes=80, mask_head=head))
            pyramid = [torch.empty(1, 256, 64 // s, 64 // s) for s in (1, 2, 4, 8)]
            category = torch.zeros(rois, dtype=torch.int64)
            with FlopCounterMode(display=False) as counter:
                built.predict(pyramid, torch.empty(rois, 5), category)
        return counter.get_total_flops() / 2e9

    def per_roi(head: MaskHeadConfig) -> float:
        return count_gmac(head, rois=2) - count_gmac(head, rois=1)

    light = MaskHeadConfig(
        squeeze=SqueezeConfig(variant="light", warp="none"),
        fine_stages=FineStagesConfig(channels=(48, 24)),
    )
    assert per_roi(light) <= 1.35 * per_roi(MaskHeadConfig(kind="plain"))


def test_settings_without_an_effect_are_errors():
    with pytest.raises(ValueError, match=r"fine_stages\.channels.*pointrend"):
        MaskHeadConfig(kind="pointrend", fine_stages=FineStagesConfig(channels=(8,)))
    with pytest.raises(ValueError, match="large_channels"):
        FineStagesConfig(large_channels=8)
