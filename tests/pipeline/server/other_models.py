"""Tiny models of the other tasks, as the server holds them, without a registry."""

from typing import NamedTuple

import torch

from bsm.build import build_model
from bsm.configs.semantic import DeepLabConfig, SemanticHeadConfig
from bsm.configs.shared import BackboneConfig
from pipeline.data.manifest import Category
from pipeline.recipe import Recipe
from pipeline.server.live_model import LoadedVersion
from pipeline.serving.predictor import Predictor
from tests.pipeline.refine.drawn_photos import TINY, make_tiny_refiner

VALUES = (7, 0, 40)
"""Category ids of the semantic model."""


class Fixed(NamedTuple):
    """A model whose version does not change."""

    name: str
    current: LoadedVersion
    problem: str = ""

    @property
    def task(self):
        return self.current.predictor.task


def hold(name, number, model, config, categories) -> Fixed:
    predictor = Predictor(
        model=model.eval(),
        recipe=Recipe(name="x", model=config),
        categories=categories,
        device=torch.device("cpu"),
    )
    return Fixed(name, LoadedVersion(f"models:/{name}/{number}", str(number), predictor))


def make_semantic_models() -> list[Fixed]:
    config = DeepLabConfig(
        num_classes=3,
        backbone=BackboneConfig(name="test_resnet", norm="batch", freeze_at=0),
        head=SemanticHeadConfig(aspp_rates=(1, 2), channels=16, low_level_channels=8),
    )
    categories = tuple(
        Category(category_id=value, category_index=index, name=name)
        for index, (value, name) in enumerate(zip(VALUES, ("road", "car", "sky"), strict=True))
    )
    models = []
    for number in (1, 2):
        torch.manual_seed(number)
        models.append(hold(f"maps{number}", number, build_model(config), config, categories))
    return models


def make_refiner() -> Fixed:
    category = Category(category_id=1, category_index=0, name="anything")
    return hold("refiner", 1, make_tiny_refiner(), TINY, (category,))
