"""With the same weights and images, our model has the detections of torchvision's version 2."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn_v2

from bsm.build import build_model
from bsm.checkpoints.torchvision import BACKGROUND_ROWS, to_torchvision
from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig, ProposalConfig
from tests.bsm.synthetic import shapes_batch, tiny_config
from tests.bsm.test_torchvision import (
    CLASSES,
    detect,
    detect_with_torchvision,
    images,
    match_share,
    randomize,
)

CONFIG = MaskRCNNConfig(
    num_classes=CLASSES,
    box_convention="torchvision",
    head_norm="frozen",
    proposals=ProposalConfig(num_convs=2, top_k_before_nms_test=200, top_k_after_nms=50),
    box_head=BoxHeadConfig(num_convs=4, num_fcs=1),
    mask_head=MaskHeadConfig(kind="plain"),
)


@pytest.fixture(scope="module")
def theirs() -> MaskRCNN:
    torch.manual_seed(1)
    model = maskrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=50,
    )
    return randomize(model.eval())


@pytest.fixture(scope="module")
def path(theirs, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "maskrcnn_resnet50_fpn_v2.pth"
    torch.save(theirs.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def ours(path):
    return build_model(replace(CONFIG, weights=path)).eval()


def test_a_converted_model_has_torchvisions_detections(theirs, ours):
    chosen = images()[:2]
    found, answers = detect(ours, chosen), detect_with_torchvision(theirs, chosen)
    for n, answer in enumerate(answers):
        assert int(found.valid[n].sum()) == len(answer["scores"]) > 20
        assert len(answer["labels"].unique()) > 2
        assert answer["masks"].std() > 0.05
    assert match_share(found, answers) == 1.0


def test_ours_to_torchvision_and_back_is_bit_equal(theirs, ours, tmp_path):
    written = to_torchvision(ours)
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
    assert set(written) == set(state)
    for key, value in state.items():
        rows = BACKGROUND_ROWS.get(key.rpartition(".")[0], 0)
        assert torch.equal(written[key][rows:], value[rows:]), key
    save_file(written, tmp_path / "w.safetensors")
    again = build_model(replace(CONFIG, weights=str(tmp_path / "w.safetensors")))
    for key, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_norms_of_the_heads_train_only_if_they_are_asked_to(path):
    frozen = build_model(replace(CONFIG, weights=path))
    batch = build_model(replace(CONFIG, weights=path, head_norm="batch"))
    assert not [m for m in frozen.modules() if isinstance(m, nn.BatchNorm2d)]
    # 4 laterals, 4 outputs, 4 convolutions of the box head and 4 of the mask head.
    assert len([m for m in batch.modules() if isinstance(m, nn.BatchNorm2d)]) == 16
    for key, value in frozen.state_dict().items():
        assert torch.equal(batch.state_dict()[key], value), key


@pytest.mark.parametrize("norm", ["none", "frozen", "batch", "group"])
def test_every_convolution_of_the_heads_gets_a_gradient(norm):
    tiny = tiny_config(kind="plain")
    config = replace(
        tiny,
        head_norm=norm,
        proposals=replace(tiny.proposals, num_convs=2),
        box_head=replace(tiny.box_head, num_convs=2, num_fcs=1),
    )
    model = build_model(config)
    pixels, sizes, targets = shapes_batch()
    sum(model(pixels, sizes, targets).values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
