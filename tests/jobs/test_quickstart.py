"""The quickstart runs from start to end, here with few steps and in one process."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from jobs.quickstart import quickstart

ROOT = Path(__file__).parents[2]
SMALL = ("--steps", "2", "--train-images", "32", "--val-images", "12", "--num-workers", "0")


def run(out: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "jobs" / "quickstart.py", "--out", out, *SMALL],
        check=False,
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_makes_a_registered_model_a_picture_and_working_commands(tmp_path, caplog):
    done = run(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    result = json.loads(last.removeprefix("RESULT "))
    assert {"mask_ap", "boundary_ap", "box_ap", "seconds"} <= set(result)
    phases = ["generate", "ingest", "check", "train", "evaluate", "register", "report", "predict"]
    assert sorted(result["seconds_by_phase"]) == sorted(phases)
    picture = cv2.imread(result["picture"])
    assert picture.shape[1] > picture.shape[0] / 2

    # The commands that it suggests work.
    text = "\n".join(lines).rpartition("Next:")[2].replace("\\\n", " ")
    commands = [line.split() for line in text.splitlines() if "jobs/" in line]
    assert [command[1] for command in commands] == ["jobs/predict.py", "jobs/evaluate.py"]
    for _, job, *arguments in commands:
        again = subprocess.run(
            [sys.executable, ROOT / job, *arguments],
            check=False,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert again.returncode == 0, again.stderr
        assert again.stdout.splitlines()[-1].startswith("RESULT ")

    with caplog.at_level(logging.INFO, logger="pipeline"):
        repeated = quickstart(
            out=tmp_path / "out", steps=2, train_images=32, val_images=12, num_workers=0
        )
    assert "nothing to train" in caplog.text
    assert repeated["mask_ap"] == result["mask_ap"]
    assert repeated["model"] == result["model"], "the same weights are not registered twice"
