"""Small models to export: few boxes, because a graph has every round of its NMS."""

from dataclasses import replace

import torch

from bsm.build import build_model
from pipeline.data.manifest import Category
from pipeline.recipe import DataConfig, Recipe
from pipeline.serving.predictor import Predictor
from tests.bsm.synthetic import tiny_config

CATEGORIES = (
    Category(category_id=7, category_index=0, name="cat"),
    Category(category_id=9, category_index=1, name="dog"),
)


def small_predictor(*, kind: str = "squeeze") -> Predictor:
    """Build an instance model with random weights, a short edge of 64 pixels and few boxes."""
    torch.manual_seed(0)
    config = tiny_config(kind=kind, num_classes=len(CATEGORIES), backbone="test_resnet")
    config = replace(
        config,
        proposals=replace(config.proposals, top_k_before_nms_test=6, top_k_after_nms=5),
        box_head=replace(config.box_head, detections_per_image=4),
    )
    data = DataConfig(short_edge_px=(64,), test_short_edge_px=64, long_edge_px=128)
    return Predictor(
        model=build_model(config).eval(),
        recipe=Recipe(name="small", model=config, data=data),
        categories=CATEGORIES,
        device=torch.device("cpu"),
    )
