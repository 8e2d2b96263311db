"""A run that was saved with older field names resumes and ends with the same weights."""

import logging
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.recipe import from_json
from pipeline.training import checkpoint, launch

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Unpack a run at step 3 of 6, its shards, and the weights that the old code ended with."""
    with zipfile.ZipFile(ROOT / "tests" / "fixtures" / "run_before_renames.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.slow
def test_a_saved_run_resumes_and_reaches_the_weights_of_the_old_code(folder, caplog):
    old_samples = Path("runs/saved_run/samples.csv").read_text()
    recipe = from_json((folder / "runs/saved_run/recipe.json").read_text())
    with caplog.at_level(logging.INFO, logger="pipeline"):
        result = launch.run(recipe)
    assert "resuming from step 3: " in caplog.text
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["4/6", "5/6", "6/6"]
    assert result["steps"] == checkpoint.find_latest("runs/saved_run").step == 6
    assert Path(result["samples"]).read_text() == old_samples
    weights, expected = load_file(result["weights"]), load_file("expected.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_job_reads_the_recipe_of_a_saved_run(folder):
    job = ROOT / "jobs" / "train.py"
    done = subprocess.run(
        [sys.executable, job, "runs/saved_run/recipe.json", "--print-recipe"],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    recipe = from_json(done.stdout)
    assert recipe == from_json((folder / "runs/saved_run/recipe.json").read_text())
    assert recipe.model.box_convention == "detectron2"
    assert recipe.model.mask_head.squeeze.variant == "paper"
