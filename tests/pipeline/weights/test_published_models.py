"""The configs of published models, and what is said about a recipe that has other rules."""

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from bsm.build import build_model
from bsm.checkpoints.torchvision import to_torchvision
from bsm.configs.instance import MaskRCNNConfig
from pipeline.weights.names import find_file
from pipeline.weights.published_models import (
    MODELS,
    describe_config,
    find_conflicts,
    list_categories,
)

V1 = "torchvision:MaskRCNN_ResNet50_FPN_Weights.COCO_V1"
V2 = "torchvision:MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1"


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_file_and_a_name_for_each_category(name):
    assert find_file(name).url.startswith("https://")
    names = list_categories(name)
    assert len(names) == MODELS[name].config.num_classes
    assert {"person", "car", "bicycle"} <= set(names)


@pytest.mark.parametrize(
    ("name", "builder"), [(V1, maskrcnn_resnet50_fpn), (V2, maskrcnn_resnet50_fpn_v2)]
)
def test_torchvisions_models_have_the_shapes_of_ours(name, builder):
    with torch.device("meta"):
        theirs = builder(weights=None, weights_backbone=None).state_dict()
        ours = to_torchvision(build_model(MODELS[name].config))
    theirs = {key: value for key, value in theirs.items() if "num_batches" not in key}
    assert {key: tuple(value.shape) for key, value in ours.items()} == {
        key: tuple(value.shape) for key, value in theirs.items()
    }


def test_rules_that_no_shape_shows_are_conflicts():
    config = MODELS[V1].config
    assert find_conflicts(V1, config) == []
    other = replace(config, box_convention="detectron2", backbone=MaskRCNNConfig().backbone)
    assert find_conflicts(V1, other) == [
        "--model.box-convention torchvision",
        "--model.backbone.norm-eps 0.0",
    ]
    assert find_conflicts("", other) == []
    zoo = "detectron2:COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
    assert find_conflicts(zoo, MaskRCNNConfig()) == [
        "--model.backbone.stride-in-1x1",
        "--model.backbone.pixel-std 1 1 1",
    ]


def test_the_flags_of_a_model_are_those_that_differ():
    flags = describe_config(V2, MaskRCNNConfig(box_convention="torchvision"))
    assert flags == (
        "--model.num-classes 90 --model.head-norm frozen --model.proposals.num-convs 2 "
        "--model.box-head.num-convs 4 --model.box-head.num-fcs 1 --model.mask-head.kind plain"
    )
    assert describe_config("models:/far/1", MaskRCNNConfig()) == ""
