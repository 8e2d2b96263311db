"""A whole model from a file of ours or of detectron2, and the errors if it does not fit."""

import pickle
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bsm.build import build_model
from bsm.checkpoints.weights import save_weights
from bsm.configs.instance import MaskHeadConfig, MaskRCNNConfig
from bsm.configs.models import without_weights
from tests.bsm.synthetic import tiny_config

DETECTRON2_NAMES = {
    "backbone.laterals.0": "backbone.fpn_lateral2",
    "backbone.laterals.1": "backbone.fpn_lateral3",
    "backbone.laterals.2": "backbone.fpn_lateral4",
    "backbone.laterals.3": "backbone.fpn_lateral5",
    "backbone.outputs.0": "backbone.fpn_output2",
    "backbone.outputs.1": "backbone.fpn_output3",
    "backbone.outputs.2": "backbone.fpn_output4",
    "backbone.outputs.3": "backbone.fpn_output5",
    "proposals.conv": "proposal_generator.rpn_head.conv",
    "proposals.objectness": "proposal_generator.rpn_head.objectness_logits",
    "proposals.deltas": "proposal_generator.rpn_head.anchor_deltas",
    "box_head.fc1": "roi_heads.box_head.fc1",
    "box_head.fc2": "roi_heads.box_head.fc2",
    "box_head.scores": "roi_heads.box_predictor.cls_score",
    "box_head.deltas": "roi_heads.box_predictor.bbox_pred",
    "mask_head.convs.0": "roi_heads.mask_head.mask_fcn1",
    "mask_head.convs.2": "roi_heads.mask_head.mask_fcn2",
    "mask_head.convs.4": "roi_heads.mask_head.mask_fcn3",
    "mask_head.convs.6": "roi_heads.mask_head.mask_fcn4",
    "mask_head.mask.deconv": "roi_heads.mask_head.deconv",
    "mask_head.mask.logits": "roi_heads.mask_head.predictor",
    "backbone.trunk.conv1": "backbone.bottom_up.stem.conv1",
    "backbone.trunk.bn1": "backbone.bottom_up.stem.conv1.norm",
}
for stage in (1, 2, 3, 4):
    for block in (0, 1):
        ours = f"backbone.trunk.layer{stage}.{block}."
        theirs = f"backbone.bottom_up.res{stage + 1}.{block}."
        for one, two in (
            ("conv1", "conv1"),
            ("bn1", "conv1.norm"),
            ("conv2", "conv2"),
            ("bn2", "conv2.norm"),
            ("downsample.0", "shortcut"),
            ("downsample.1", "shortcut.norm"),
        ):
            DETECTRON2_NAMES[ours + one] = theirs + two

for stage in range(3):
    for one, two in (
        ("fc1", "box_head.{}.fc1"),
        ("fc2", "box_head.{}.fc2"),
        ("scores", "box_predictor.{}.cls_score"),
        ("deltas", "box_predictor.{}.bbox_pred"),
    ):
        DETECTRON2_NAMES[f"box_head.stages.{stage}.{one}"] = f"roi_heads.{two.format(stage)}"
for one, two in (
    ("coarse.reduce.0", "coarse_head.reduce_spatial_dim_conv"),
    ("coarse.fc1", "coarse_head.fc1"),
    ("coarse.fc2", "coarse_head.fc2"),
    ("coarse.mask", "coarse_head.prediction"),
    ("point.layers.0", "point_head.fc1"),
    ("point.layers.1", "point_head.fc2"),
    ("point.layers.2", "point_head.fc3"),
    ("point.logits", "point_head.predictor"),
):
    DETECTRON2_NAMES[f"mask_head.{one}"] = f"roi_heads.mask_head.{two}"

OLDER_POINTREND = (
    ("mask_head.coarse_head.fc", "mask_coarse_head.coarse_mask_fc"),
    ("mask_head.coarse_head.", "mask_coarse_head."),
    ("mask_head.point_head.", "mask_point_head."),
)

HEADS = ("box_head.scores", "box_head.deltas", "mask_head.mask.logits")


def config(
    kind: str = "plain", *, num_classes: int = 3, boxes: str = "single", **fields: object
) -> MaskRCNNConfig:
    tiny = tiny_config(kind=kind, num_classes=num_classes, backbone="resnet18", boxes=boxes)
    return replace(
        tiny,
        backbone=replace(tiny.backbone, norm="frozen"),
        mask_head=replace(tiny.mask_head, num_convs=4),
        **fields,
    )


def model(seed: int, **fields: object) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(config(**fields))


def write_detectron2_file(folder: Path, source: nn.Module, **extra: Tensor) -> str:
    tensors = dict(extra)
    for key, value in source.state_dict().items():
        module, _, tensor = key.rpartition(".")
        tensors[f"{DETECTRON2_NAMES[module]}.{tensor}"] = value
    first = "backbone.bottom_up.stem.conv1.weight"
    tensors[first] = tensors[first].flip(1)  # the file reads BGR
    path = folder / "model_final.pkl"
    arrays = {name: value.numpy() for name, value in tensors.items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return str(path)


def write_own_file(folder: Path, source: nn.Module) -> str:
    save_weights(source, folder / "model.safetensors")
    return str(folder / "model.safetensors")


def find_leave_out(error: str) -> tuple[str, ...]:
    """Parse the parts that an error suggests to leave out, as a shell would."""
    (flag,) = re.findall(r"--model\.weights-leave-out ([^()]+)", error)
    return tuple(shlex.split(flag.rstrip(". ")))


def find_equal(a: nn.Module, b: nn.Module) -> set[str]:
    state = b.state_dict()
    return {key for key, value in a.state_dict().items() if torch.equal(value, state[key])}


def settings(*, sizes: tuple[float, ...], order: int = -1, std: float | None = None) -> dict:
    """Make the pixel mean, deviation and anchors of an older detectron2 file."""
    backbone = config().backbone
    deviation = backbone.pixel_std[::order] if std is None else [std] * 3
    anchors = {}
    for level, side in enumerate(sizes):
        long, short = side * 2**0.5 / 2, side * 0.5**0.5 / 2
        shapes = ((long, short), (side / 2, side / 2), (short, long))
        anchors[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = torch.tensor(
            [[-w, -h, w, h] for w, h in shapes]
        )
    return {
        "pixel_mean": torch.tensor(backbone.pixel_mean[::order]).view(3, 1, 1),
        "pixel_std": torch.tensor(deviation).view(3, 1, 1),
        **anchors,
    }


def test_a_detectron2_model(tmp_path):
    source = model(0)
    extra = settings(sizes=config().proposals.anchor_sizes_px)
    loaded = model(1, weights=write_detectron2_file(tmp_path, source, **extra))
    assert find_equal(loaded, source) == set(source.state_dict())
    assert len(find_equal(model(1), source)) < len(source.state_dict())


@pytest.mark.parametrize(("kind", "boxes"), [("plain", "cascade"), ("pointrend", "single")])
def test_detectron2s_cascade_and_pointrend(tmp_path, kind, boxes):
    source = model(0, kind=kind, boxes=boxes)
    loaded = model(1, kind=kind, boxes=boxes, weights=write_detectron2_file(tmp_path, source))
    assert find_equal(loaded, source) == set(source.state_dict())
    assert len(find_equal(model(1, kind=kind, boxes=boxes), source)) < len(source.state_dict())


def test_pointrend_of_the_older_names(tmp_path):
    source = model(0, kind="pointrend")
    path = Path(write_detectron2_file(tmp_path, source))
    content = pickle.loads(path.read_bytes())  # noqa: S301  our own
    for new, old in OLDER_POINTREND:
        content["model"] = {k.replace(new, old): v for k, v in content["model"].items()}
    assert any("coarse_mask_fc1" in name for name in content["model"])
    path.write_bytes(pickle.dumps(content, protocol=2))
    loaded = model(1, kind="pointrend", weights=str(path))
    assert find_equal(loaded, source) == set(source.state_dict())


def test_settings_of_a_detectron2_file_are_compared_with_the_config(tmp_path):
    extra = settings(sizes=(32.0, 64.0, 128.0, 256.0, 512.0), std=1.0)
    path = write_detectron2_file(tmp_path, model(0), **extra)
    with pytest.raises(ValueError, match="model_final") as error:
        model(1, weights=path)
    assert "Type: --model.backbone.pixel-std 1 1 1;" in str(error.value)
    assert (
        "Type: --model.proposals.anchor-sizes-px 32 64 128 256 512 "
        "--model.proposals.aspect-ratios 0.5 1 2"
    ) in str(error.value)
    assert "pixel_mean" not in str(error.value)


def test_a_detectron2_file_that_reads_rgb_is_recognized_by_its_mean(tmp_path):
    extra = settings(sizes=config().proposals.anchor_sizes_px, order=1)
    path = write_detectron2_file(tmp_path, model(0), **extra)
    with pytest.raises(ValueError, match=r"--model\.backbone\.weights-color-order rgb"):
        model(1, weights=path)
    backbone = replace(config().backbone, weights_color_order="rgb")
    loaded = build_model(replace(config(), weights=path, backbone=backbone))
    # The file was written with flipped channels, as if it read BGR.
    first = model(0).backbone.trunk.conv1.weight
    assert torch.equal(loaded.backbone.trunk.conv1.weight, first.flip(1))


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnext101_32x8d"])
def test_detectron2s_names_of_the_zoos_backbones(name: str):
    from bsm.checkpoints.detectron2 import MASK_RCNN

    blocks = {"resnet50": (3, 4, 6, 3)}.get(name, (3, 4, 23, 3))
    expected = {"backbone.bottom_up.stem.conv1"}
    for stage, count in enumerate(blocks, start=2):
        expected.add(f"backbone.bottom_up.res{stage}.0.shortcut")
        expected |= {
            f"backbone.bottom_up.res{stage}.{block}.conv{conv}"
            for block in range(count)
            for conv in (1, 2, 3)
        }
    kinds = ("", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    names = {f"{conv}.{kind or 'weight'}" for conv in expected for kind in kinds}
    names |= {
        f"{theirs}.{tensor}"
        for ours, theirs in DETECTRON2_NAMES.items()
        for tensor in ("weight", "bias")
        if not ours.startswith(("backbone.trunk", "box_head.stages", "mask_head.coarse"))
        and "point" not in ours
    }
    with torch.device("meta"):
        whole = build_model(
            MaskRCNNConfig(
                backbone=replace(config().backbone, name=name),
                mask_head=MaskHeadConfig(kind="plain"),
            )
        )
    assert {MASK_RCNN.to_external_name(key) for key in whole.state_dict()} == names


@pytest.mark.parametrize("write", [write_own_file, write_detectron2_file])
def test_other_categories_start_at_random_on_request(tmp_path, write):
    path = write(tmp_path, model(0))
    with pytest.raises(ValueError, match="the file has 3 categories, the model 5") as error:
        model(1, num_classes=5, weights=path)
    assert "6 of another shape: " in str(error.value)
    parts = find_leave_out(str(error.value))
    assert set(parts) == set(HEADS)
    loaded = model(1, num_classes=5, weights=path, weights_leave_out=parts)
    fresh = model(1, num_classes=5)
    random = {key for key in fresh.state_dict() if key.startswith(HEADS)}
    assert random <= find_equal(loaded, fresh)  # bit for bit as without weights
    others = {key: value for key, value in model(0).state_dict().items() if key not in random}
    for key, value in others.items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_squeeze_starts_from_a_plain_model_and_back(tmp_path):
    path = write_detectron2_file(tmp_path, model(0))
    with pytest.raises(ValueError, match="do not fit") as error:
        model(1, kind="squeeze", weights=path)
    parts = find_leave_out(str(error.value))
    assert set(parts) == {
        f"mask_head.{part}" for part in ("squeeze", "boundary", "contraction", "expansion")
    }
    squeeze = model(1, kind="squeeze", weights=path, weights_leave_out=parts)
    assert find_equal(model(0), squeeze) == set(model(0).state_dict())
    assert torch.equal(
        squeeze.mask_head.squeeze.downsample[0].weight,
        model(1, kind="squeeze").mask_head.squeeze.downsample[0].weight,
    )
    path = write_own_file(tmp_path, squeeze)
    with pytest.raises(ValueError, match="unexpected: mask_head") as error:
        model(2, weights=path)
    plain = model(2, weights=path, weights_leave_out=find_leave_out(str(error.value)))
    assert find_equal(plain, model(0)) == set(plain.state_dict())


def test_every_difference_is_listed(tmp_path):
    source = model(0)
    path = write_detectron2_file(
        tmp_path, source, **{"roi_heads.box_head.fc3.weight": torch.zeros(2)}
    )
    tensors = pickle.loads(Path(path).read_bytes())["model"]  # noqa: S301  our own
    del tensors["proposal_generator.rpn_head.anchor_deltas.bias"]
    tensors["roi_heads.box_head.fc1.bias"] = tensors["roi_heads.box_head.fc1.bias"][:1]
    Path(path).write_bytes(pickle.dumps({"model": tensors, "__author__": "x"}, protocol=2))
    with pytest.raises(ValueError, match="do not fit") as error:
        model(1, weights=path)
    for part in (
        "1 missing: proposals.deltas.bias;",
        "1 unexpected: roi_heads.box_head.fc3.weight;",
        "1 of another shape: box_head.fc1.bias is (1,), the model has (32,)",
    ):
        assert part in str(error.value)


def test_another_backbone_raises(tmp_path):
    path = write_own_file(tmp_path, model(0))
    backbone = replace(config().backbone, name="resnet26")
    with pytest.raises(ValueError, match="the backbone here is resnet26") as error:
        build_model(replace(config(), weights=path, backbone=backbone))
    assert "leave-out" not in str(error.value)


def test_a_part_to_leave_out_must_exist(tmp_path):
    path = write_own_file(tmp_path, model(0))
    with pytest.raises(ValueError, match=r"box_head\.score, mask_heads: neither") as error:
        model(1, weights=path, weights_leave_out=("box_head.score", "mask_heads", "proposals"))
    assert "backbone, box_head, mask_head, proposals" in str(error.value)
    with pytest.raises(ValueError, match="weights_leave_out"):
        config(weights_leave_out=("box_head",))


def test_backbone_weights_are_not_read_with_model_weights(tmp_path):
    path = write_own_file(tmp_path, model(0))
    backbone = replace(config().backbone, weights="/nowhere/r50.pth")
    loaded = build_model(replace(config(), weights=path, backbone=backbone))
    assert find_equal(loaded, model(0)) == set(loaded.state_dict())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["head.weight"], "Rename its tensors"),
        (["res2_0_branch2a_w"], "--model.backbone.weights"),
        (["conv1.weight", "layer1.0.conv1.weight"], "--model.backbone.weights"),
    ],
)
def test_a_file_without_a_model_raises(tmp_path, names: list[str], message: str):
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message) as error:
        model(0, weights=str(tmp_path / "w.pth"))
    for known in ("proposals.objectness.weight", "roi_heads.box_head.fc6.weight", names[0]):
        assert known in str(error.value)


def test_without_weights_is_the_same_model():
    whole = config(weights="a.pth", weights_leave_out=("box_head",))
    whole = replace(whole, backbone=replace(whole.backbone, weights="timm"))
    assert without_weights(whole) == config()
