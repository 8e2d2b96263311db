"""Checkpoints of the released BSM and BMask R-CNN: names, flags, and the masks they predict."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsm.build import build_model
from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.shared import SqueezeConfig
from bsm.instance.roi import pool_finest, pool_rois
from tests.bsm.synthetic import shapes_batch, tiny_config
from tests.bsm.test_model_weights import DETECTRON2_NAMES, find_equal

OWN_NAMES = {
    "mask_head.squeeze.downsample.0": "downsample",
    "mask_head.squeeze.contraction.tower.0": "ce_module.contraction_tower.0",
    "mask_head.squeeze.contraction.tower.2": "ce_module.contraction_tower.2",
    "mask_head.squeeze.contraction.slot.flow": "ce_module.flow_mask_contraction",
    "mask_head.squeeze.expansion.tower.0": "ce_module.expansion_tower.0",
    "mask_head.squeeze.expansion.tower.2": "ce_module.expansion_tower.2",
    "mask_head.squeeze.expansion.slot.flow": "ce_module.flow_mask_expansion",
    "mask_head.squeeze.boundary_tower.0": "ce_module.edge_tower.0",
    "mask_head.squeeze.boundary_tower.2": "ce_module.edge_tower.2",
    "mask_head.squeeze.boundary_to_mask.0": "boundary_to_mask",
    "mask_head.squeeze.mask_fusion.0": "mask_final_fusion",
    "mask_head.downsample.0": "downsample",
    "mask_head.mask_to_boundary.0": "mask_to_boundary",
    "mask_head.boundary_convs.0.0": "boundary_fcn1",
    "mask_head.boundary_convs.1.0": "boundary_fcn2",
    "mask_head.boundary_to_mask.0": "boundary_to_mask",
    "mask_head.mask_fusion.0": "mask_final_fusion",
    "mask_head.mask.deconv": "mask_deconv",
    "mask_head.mask.logits": "mask_predictor",
    "mask_head.boundary.deconv": "boundary_deconv",
    "mask_head.boundary.logits": "boundary_predictor",
    "mask_head.contraction.deconv": "contraction_deconv",
    "mask_head.contraction.logits": "contraction_predictor",
    "mask_head.expansion.deconv": "expansion_deconv",
    "mask_head.expansion.logits": "expansion_predictor",
}
NAMES = DETECTRON2_NAMES | {
    ours: f"roi_heads.mask_head.{theirs}" for ours, theirs in OWN_NAMES.items()
}
SIGNS = {"single": "minus", "cascade": "plus"}


def config(boxes: str, **squeeze: object) -> MaskRCNNConfig:
    tiny = tiny_config(backbone="resnet18", boxes=boxes)
    return replace(
        tiny,
        backbone=replace(tiny.backbone, norm="frozen"),
        mask_head=replace(tiny.mask_head, num_convs=4, squeeze=SqueezeConfig(**squeeze)),
    )


def released(boxes: str) -> MaskRCNNConfig:
    return config(boxes, legacy_warp=True, fusion=SIGNS[boxes])


def make_model(seed: int, config: MaskRCNNConfig) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model(config)
    for parameter in model.mask_head.parameters():  # a new flow is zero
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    return model


def write_file(folder: Path, source: nn.Module) -> str:
    tensors = {}
    for key, value in source.state_dict().items():
        module, _, tensor = key.rpartition(".")
        tensors[f"{NAMES[module]}.{tensor}"] = value
    first = "backbone.bottom_up.stem.conv1.weight"
    tensors[first] = tensors[first].flip(1)  # the file reads BGR
    torch.save({"model": tensors, "iteration": 90_000}, folder / "model_final.pth")
    return str(folder / "model_final.pth")


def predict_as_released(tensors: dict[str, Tensor], coarse: Tensor, fine: Tensor) -> Tensor:
    """Predict the masks of a model without a cascade, by the rules of the released code."""

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        name = f"roi_heads.mask_head.{name}"
        weight = tensors[f"{name}.weight"]
        options.setdefault("padding", weight.shape[-1] // 2)
        return F.conv2d(x, weight, tensors.get(f"{name}.bias"), **options)

    def tower(x: Tensor, name: str) -> Tensor:
        return conv(conv(x, f"ce_module.{name}_tower.0").relu(), f"ce_module.{name}_tower.2")

    def warp(x: Tensor, flow: Tensor) -> Tensor:
        at = torch.linspace(-1, 1, x.shape[-1])
        grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1)
        moved = grid + flow.permute(0, 2, 3, 1) / x.shape[-1]
        return F.grid_sample(x, moved, align_corners=False)

    for number in (1, 2, 3, 4):
        coarse = conv(coarse, f"mask_fcn{number}").relu()
    summed = coarse + conv(fine, "downsample", stride=2).relu()
    squeezed = []
    for name in ("contraction", "expansion"):
        feature = tower(summed, name)
        flow = conv(torch.cat([feature, coarse], dim=1), f"ce_module.flow_mask_{name}")
        squeezed.append(warp(feature, flow))
    edge = tower(squeezed[0] + squeezed[1] - coarse, "edge")
    merged = coarse + conv(edge, "boundary_to_mask").relu() + squeezed[0] + squeezed[1]
    merged = conv(merged, "mask_final_fusion").relu()
    head = "roi_heads.mask_head.mask_deconv"
    merged = F.conv_transpose2d(
        merged, tensors[f"{head}.weight"], tensors[f"{head}.bias"], stride=2
    ).relu()
    return conv(merged, "mask_predictor")


@pytest.mark.parametrize("kind", ["squeeze", "bmask"])
@pytest.mark.parametrize("boxes", ["single", "cascade"])
def test_every_tensor_is_loaded(tmp_path: Path, boxes: str, kind: Literal["squeeze", "bmask"]):
    config = released(boxes)
    config = replace(config, mask_head=replace(config.mask_head, kind=kind))
    source = make_model(0, config)
    loaded = build_model(replace(config, weights=write_file(tmp_path, source)))
    assert find_equal(loaded, source) == set(source.state_dict())


def test_the_loaded_head_predicts_the_masks_of_the_released_code(tmp_path: Path) -> None:
    path = write_file(tmp_path, make_model(0, released("single")))
    head = build_model(replace(released("single"), weights=path)).mask_head
    _, _, targets = shapes_batch()
    rois = torch.cat([torch.zeros(3, 1), targets.boxes_xyxy[0]], dim=1)
    generator = torch.Generator().manual_seed(0)
    pyramid = [torch.randn(1, 16, 64 // s, 64 // s, generator=generator) for s in (4, 8, 16, 32)]
    category = targets.category_index[0]
    expected = predict_as_released(
        torch.load(path, weights_only=True)["model"],
        pool_rois(pyramid, rois, side=14),
        pool_finest(pyramid[0], rois, side=28),
    )[torch.arange(3), category]
    with torch.no_grad():
        found = head.predict(pyramid, rois, category)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("boxes", ["single", "cascade"])
def test_missing_flags_are_named(tmp_path: Path, boxes: str) -> None:
    path = write_file(tmp_path, make_model(0, released(boxes)))
    other = {"minus": "plus", "plus": "minus"}[SIGNS[boxes]]
    with pytest.raises(ValueError, match="model_final") as error:
        build_model(replace(config(boxes, fusion=other), weights=path))
    assert "Type: --model.mask-head.squeeze.legacy-warp;" in str(error.value)
    flag = f"Type: --model.mask-head.squeeze.fusion {SIGNS[boxes]}"
    assert flag in str(error.value)
    with pytest.raises(ValueError, match="model_final") as error:
        build_model(replace(config(boxes, legacy_warp=True, fusion=other), weights=path))
    assert "legacy-warp" not in str(error.value)
    assert flag in str(error.value)
