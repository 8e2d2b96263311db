"""Ray Data streams photos through two workers, which refine what one process refines."""

import json
from pathlib import Path

import pytest

from pipeline.refine.refine_files import RefineOptions, refine_files
from pipeline.registry.predict import load_refiner
from pipeline.training import launch
from tests.pipeline.refine.drawn_photos import make_coarse_rows, write_photos
from tests.pipeline.training.tiny_refine_run import refine_recipe
from tests.pipeline.training.tiny_run import write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("one_ray")]


def test_two_workers_refine_a_results_file_like_one_process(tmp_path):
    shards = write_shards(tmp_path / "shapes", train_images=8)
    trained = launch.run(refine_recipe(shards, tmp_path / "runs", name="refiner", num_workers=0))
    registry = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    refiner = load_refiner(trained["model"], tracking=registry)
    truth = write_photos(tmp_path / "drawn", count=12)
    file = tmp_path / "results.json"
    file.write_text(json.dumps(make_coarse_rows(truth)))
    results = []
    for workers in (0, 2):
        out = tmp_path / f"refined-{workers}.json"
        options = RefineOptions(
            images=str(tmp_path / "drawn" / "photos"),
            detections=str(file),
            truth=str(tmp_path / "drawn" / "truth.json"),
            out=str(out),
            workers=workers,
            max_change=1.0,
        )
        results.append(refine_files(refiner.model, refiner.uri, options))
    contents = [Path(each["out"]).read_bytes() for each in results]
    assert contents[0] == contents[1] != file.read_bytes()
    same = ("photos", "masks", "refined", "kept", "mean_change", "boundary_iou", "boundary_ap")
    assert [results[0][name] for name in same] == [results[1][name] for name in same]
