"""Metrics of several merged views of each image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bsm.instance.tensors import Detections
from pipeline.errors import RecipeError
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.recipe import DataConfig, EvaluationConfig
from pipeline.registry.provenance import describe_evaluation_set
from tests.pipeline.evaluation import tiny_maps_split
from tests.pipeline.evaluation.tiny_split import ExactModel, write_split

DATA = DataConfig(short_edge_px=(64,), test_short_edge_px=64, long_edge_px=128)
VIEWS = EvaluationConfig(flip=True, scales=(0.5, 1.0, 2.0), images_per_batch=4)


class MirroredModel(ExactModel):
    """Predicts the truth, and in every second view its mirror image, or nothing."""

    def __init__(self, *, finds: str = "mirror image") -> None:
        super().__init__()
        self.finds, self.widths = finds, []

    def forward(self, images, image_sizes_hw) -> Detections:
        self.widths.append(int(image_sizes_hw[0, 1]))
        found = super().forward(images, image_sizes_hw)
        if len(self.widths) % 2:
            return found
        if self.finds == "nothing":
            return found._replace(valid=torch.zeros_like(found.valid))
        boxes = found.boxes_xyxy[..., [2, 1, 0, 3]].clone()
        boxes[..., 0::2] = self.widths[-1] - boxes[..., 0::2]
        return found._replace(boxes_xyxy=boxes, mask_probs=found.mask_probs.flip(-1))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_split(tmp_path_factory.mktemp("tiny") / "val", row_groups=((5,),))


def test_every_image_is_predicted_in_every_view_and_the_objects_are_merged(split):
    model = MirroredModel()
    model.train()
    found = evaluate_model(model, split, DATA, VIEWS)
    assert model.training
    # Five images, three sizes, each with its mirror image.
    assert model.widths == 5 * [43, 43, 85, 85, 171, 171]
    alone = evaluate_model(ExactModel(), split, DATA, EvaluationConfig())
    assert found.metrics["mask_ap"] == pytest.approx(alone.metrics["mask_ap"], abs=0.02)
    assert found.metrics["box_ap"] == pytest.approx(1)
    assert len(found.detections) == len(alone.detections)
    scores = [[row["score"] for row in each.detections] for each in (found, alone)]
    assert np.allclose(*scores)


def test_what_half_of_the_views_show_has_half_the_score(split):
    views = replace(VIEWS, scales=(1.0,))
    found = evaluate_model(MirroredModel(finds="nothing"), split, DATA, views)
    alone = evaluate_model(ExactModel(), split, DATA, EvaluationConfig())
    scores = [np.array([row["score"] for row in each.detections]) for each in (found, alone)]
    assert np.allclose(scores[0], scores[1] / 2)


def test_a_mirror_image_that_is_not_mirrored_back_would_be_seen(split):
    found = evaluate_model(ExactModel(), split, DATA, replace(VIEWS, scales=(1.0,)))
    assert found.metrics["box_ap"] < 0.8


def test_label_maps_are_decided_by_the_mean_of_the_views(tmp_path: Path):
    maps = tiny_maps_split.write_maps_split(tmp_path / "maps", images=3)
    views = EvaluationConfig(flip=True, scales=(1.0, 2.0))
    model, seen = tiny_maps_split.BrightnessModel(), []
    model.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[-1]))
    found = evaluate_model(model, maps, DataConfig(), views)
    assert found.metrics["miou"] == 1
    # Three images, two sizes, each with its mirror image.
    width = seen[0]
    assert seen == 3 * [width, width, 2 * width, 2 * width]


def test_numbers_of_other_views_are_not_comparable():
    assert describe_evaluation_set("abc", 5, VIEWS) == (
        "abc, 5 images, flip True, scales (0.5, 1.0, 2.0)"
    )


@pytest.mark.parametrize(
    "fields", [{"boxes": "truth"}, {"window_px": 64}, {"scales": ()}, {"scales": (0.0,)}]
)
def test_views_that_cannot_be_merged_are_refused(fields):
    with pytest.raises(RecipeError):
        replace(VIEWS, **fields)
