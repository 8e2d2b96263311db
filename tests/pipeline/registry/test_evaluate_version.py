"""A version is measured only where there is something to measure."""

from typing import Any

import pytest

from pipeline.data.ingest import CocoIngest, ingest_dataset
from pipeline.errors import DatasetError
from pipeline.recipe import EvaluationConfig
from pipeline.registry.evaluate_version import evaluate_version, make_evaluator
from tests.pipeline.data.coco_samples import SPLIT, load, save, small_coco


def test_a_split_without_labels_is_refused_before_anything_is_read(tmp_path):
    root = small_coco(tmp_path / "coco", images=2)
    save(root, {**load(root), "annotations": []})
    ingest_dataset(CocoIngest(root=str(root), split=SPLIT, out=f"{root}/out", workers=0))
    settings, version = EvaluationConfig(), Any
    for evaluate in (
        lambda: evaluate_version(version, f"{root}/out", settings),
        lambda: make_evaluator(f"{root}/out", settings),
    ):
        with pytest.raises(DatasetError, match="/out has nothing to measure: it has no annotation"):
            evaluate()
