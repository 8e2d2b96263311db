"""With the same weights and images, our model has the detections of torchvision's Mask R-CNN."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from bsm.build import build_model
from bsm.checkpoints.torchvision import BACKGROUND_ROWS, to_torchvision
from bsm.configs.instance import MaskHeadConfig, MaskRCNNConfig, ProposalConfig
from bsm.configs.shared import FpnBackboneConfig
from bsm.instance import roi
from bsm.instance.proposals import make_anchors
from bsm.instance.tensors import Detections

CLASSES = 10
CONFIG = MaskRCNNConfig(
    num_classes=CLASSES,
    box_convention="torchvision",
    backbone=FpnBackboneConfig(name="resnet50"),
    proposals=ProposalConfig(top_k_before_nms_test=400, top_k_after_nms=200),
    mask_head=MaskHeadConfig(kind="plain"),
)
SIZES_HW = ((128, 160), (117, 150), (96, 139))
"""The second and third are padded, and P5 has odd sides, where torchvision's anchors are closer."""


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        for size in SIZES_HW
    ]


def torchvision_model() -> MaskRCNN:
    return maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        rpn_pre_nms_top_n_test=400,
        rpn_post_nms_top_n_test=200,
    ).eval()


def randomize(model: MaskRCNN) -> MaskRCNN:
    """Scale random weights so that there are many detections of several categories."""
    heads = model.roi_heads
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(std=0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
        for level in model.backbone.fpn.layer_blocks:
            level[0].weight.div_(70)  # features of about 1
        model.rpn.head.cls_logits.weight.mul_(10)
        model.rpn.head.bbox_pred.weight.mul_(5)
        heads.box_predictor.cls_score.weight.mul_(30)
        heads.box_predictor.bbox_pred.bias.normal_(std=0.5)
        heads.mask_predictor.mask_fcn_logits.bias.normal_()
        seen = []
        hook = heads.box_predictor.register_forward_hook(lambda *args: seen.append(args[2][0]))
        detect_with_torchvision(model, images()[:1])
        hook.remove()
        heads.box_predictor.cls_score.bias.sub_(seen[0].mean(0))  # no category wins everywhere
    return model


@torch.no_grad()
def detect_with_torchvision(model: MaskRCNN, batch: list[Tensor]) -> list[dict[str, Tensor]]:
    """Run torchvision's detector without pasting masks; images keep their sizes."""
    model.transform.resize = lambda image, target=None: (image, target)
    model.transform.postprocess = lambda found, *_: found
    return model([image.float() / 255 for image in batch])


@torch.no_grad()
def detect(model, batch: list[Tensor]) -> Detections:
    sizes = torch.tensor([image.shape[1:] for image in batch])
    height, width = sizes.amax(0).tolist()
    padded = torch.zeros(len(batch), 3, height, width, dtype=torch.uint8)
    for place, image in zip(padded, batch, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return model.eval()(padded, sizes)


@pytest.fixture(scope="module")
def theirs() -> MaskRCNN:
    torch.manual_seed(1)
    return randomize(torchvision_model())


@pytest.fixture(scope="module")
def path(theirs, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "maskrcnn_resnet50_fpn.pth"
    torch.save(theirs.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def ours(path):
    return build_model(replace(CONFIG, weights=path)).eval()


def match_share(found: Detections, answers: list[dict[str, Tensor]]) -> float:
    """Compute the share of torchvision's detections that ours match: box, category, score, mask.

    In any order: scores that are equal but for rounding may swap.
    """
    same = []
    for n, answer in enumerate(answers):
        distance = (found.boxes_xyxy[n][None] - answer["boxes"][:, None]).abs().amax(-1)
        wrong = ~found.valid[n] | (found.category_index[n] + 1 != answer["labels"][:, None])
        nearest = distance.masked_fill(wrong, torch.inf).argmin(1)
        masks = (found.mask_probs[n, nearest] - answer["masks"][:, 0]).abs().amax((1, 2))
        same += [
            (distance.gather(1, nearest[:, None])[:, 0] < 2e-3)
            & ((found.scores[n, nearest] - answer["scores"]).abs() < 1e-4)
            & (found.category_index[n, nearest] + 1 == answer["labels"])
            & (masks < 5e-4)
        ]
    return torch.cat(same).float().mean().item()


@pytest.mark.parametrize("batch", [[1], [0, 1, 2]])
def test_a_converted_model_has_torchvisions_detections(theirs, ours, batch: list[int]):
    chosen = [images()[i] for i in batch]
    found, answers = detect(ours, chosen), detect_with_torchvision(theirs, chosen)
    for n, answer in enumerate(answers):
        assert int(found.valid[n].sum()) == len(answer["scores"]) > 50
        assert len(answer["labels"].unique()) > 4
        assert answer["masks"].std() > 0.1
    assert match_share(found, answers) == 1.0


def test_with_the_other_box_convention_it_does_not(theirs, path):
    other = build_model(replace(CONFIG, weights=path, box_convention="detectron2"))
    chosen = images()[:1]
    assert match_share(detect(other, chosen), detect_with_torchvision(theirs, chosen)) < 0.05


def test_anchors_are_torchvisions(ours):
    features = [torch.zeros(1, 1, *size) for size in ((40, 56), (20, 28), (10, 14), (5, 7), (3, 4))]
    sizes = torch.tensor([[150, 201]])
    generator = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    (theirs,) = generator(ImageList(torch.zeros(1, 3, 160, 224), [(150, 201)]), features)
    anchors = make_anchors(features, sizes, config=CONFIG.proposals, box_convention="torchvision")
    assert torch.equal(anchors.boxes_xyxy, theirs)
    assert anchors.inside.all()
    other = make_anchors(features, sizes, config=CONFIG.proposals)
    assert not torch.allclose(other.boxes_xyxy, theirs, atol=0.1)


def test_rois_are_pooled_as_torchvision_does():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 3, 512 // s, 512 // s, generator=generator) for s in (4, 8, 16, 32)]
    corners = torch.rand(2, 40, 2, generator=generator) * 200
    sides = torch.rand(2, 40, 2, generator=generator) ** 3 * 250 + 0.1
    sides[0, :3] = torch.tensor([112.0, 224.0, 448.0])[:, None]  # on the border between levels
    corners[0, :3] = 0.0
    boxes = torch.cat((corners, corners + sides), dim=-1)
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    expected = pooler(
        {str(i): f for i, f in enumerate(features)}, list(boxes), [(512, 512), (512, 512)]
    )
    rois = roi.gather_rois(boxes, torch.arange(80))
    assert len(roi.assign_levels(rois[:, 1:], box_convention="torchvision").unique()) == 4
    pooled = roi.pool_rois(features, rois, side=7, box_convention="torchvision")
    assert torch.allclose(pooled, expected, atol=1e-5)
    level = roi.assign_levels(rois[:, 1:], box_convention="torchvision")
    dense = roi.pool_without_sync(features, rois, level, side=7, box_convention="torchvision")
    assert torch.allclose(dense, expected, atol=1e-5)
    assert not torch.allclose(roi.pool_rois(features, rois, side=7), expected, atol=0.1)


def test_ours_to_torchvision_and_back_is_bit_equal(ours, tmp_path):
    torch.manual_seed(7)
    model = build_model(CONFIG)
    save_file(to_torchvision(model), tmp_path / "w.safetensors")
    again = build_model(replace(CONFIG, weights=str(tmp_path / "w.safetensors")))
    differs = []
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
        differs.append(not torch.equal(ours.state_dict()[key], value))
    assert sum(differs) > 100


def test_torchvision_to_ours_and_back_loses_rows_of_the_background_only(theirs, ours):
    written = to_torchvision(ours)
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
    assert set(written) == set(state)
    for key, value in state.items():
        rows = BACKGROUND_ROWS.get(key.rpartition(".")[0], 0)
        assert torch.equal(written[key][rows:], value[rows:]), key
        assert written[key][:rows].eq(0).all()
        assert rows == 0 or value[:rows].ne(0).any()
    again = torchvision_model()
    again.load_state_dict(written)
    chosen = images()[1:2]
    for a, b in zip(
        detect_with_torchvision(again, chosen), detect_with_torchvision(theirs, chosen), strict=True
    ):
        assert torch.equal(a["boxes"], b["boxes"])
        assert torch.equal(a["masks"], b["masks"])


def test_names_of_older_files_are_read(theirs, ours, tmp_path):
    """They are in maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth, from before torchvision 0.13."""
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
    older = {
        "backbone.fpn.inner_blocks.0.0.weight": "backbone.fpn.inner_blocks.0.weight",
        "backbone.fpn.layer_blocks.3.0.bias": "backbone.fpn.layer_blocks.3.bias",
        "rpn.head.conv.0.0.weight": "rpn.head.conv.weight",
        "roi_heads.mask_head.0.0.weight": "roi_heads.mask_head.mask_fcn1.weight",
        "roi_heads.mask_head.3.0.bias": "roi_heads.mask_head.mask_fcn4.bias",
    }
    for new, old in older.items():
        state[old] = state.pop(new)
    torch.save(state, tmp_path / "old.pth")
    model = build_model(replace(CONFIG, weights=str(tmp_path / "old.pth")))
    for key, value in ours.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_a_model_with_other_parts_is_not_exported():
    config = replace(CONFIG, mask_head=MaskHeadConfig(kind="squeeze"))
    with torch.device("meta"):
        model = build_model(config)
    with pytest.raises(ValueError, match=r"no names for: mask_head\.squeeze"):
        to_torchvision(model)


def test_the_epsilon_of_published_weights():
    model = build_model(replace(CONFIG, backbone=FpnBackboneConfig(norm_eps=0.0, freeze_at=2)))
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == 53
    assert {norm.eps for norm in norms} == {0.0}
