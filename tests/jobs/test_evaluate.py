"""jobs/evaluate.py as a user runs it: a table, RESULT last, faults on stderr with exit code 2."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.evaluate import evaluate
from pipeline.cli import run_verb

JOB = Path(__file__).parents[2] / "jobs" / "evaluate.py"

TRUTH = {
    "images": [{"id": 1, "height": 50, "width": 60}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 44, "name": "bottle"}],
    "annotations": [
        {
            "id": 5,
            "image_id": 1,
            "category_id": 18,
            "segmentation": [[5, 5, 45, 5, 45, 40, 5, 40]],
            "bbox": [5, 5, 40, 35],
            "area": 1400,
            "iscrowd": 0,
        }
    ],
}

FOUND = [
    {
        "image_id": 1,
        "category_id": 18,
        "score": 0.5,
        "segmentation": [[5, 5, 45, 5, 45, 40, 5, 40]],
        "bbox": [5, 5, 40, 35],
    }
]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, str]]:
    """Give a function that runs the job in this process: exit code, stdout, stderr."""

    def call(truth: object, found: object, *flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["evaluate.py", *_files(tmp_path, truth, found), *flags])
        try:
            run_verb(evaluate)
        except SystemExit as end:
            code = int(end.code or 0)
        else:
            code = 0
        return code, *capsys.readouterr()

    return call


def _files(folder: Path, truth: object, found: object) -> list[str]:
    (folder / "truth.json").write_text(truth if isinstance(truth, str) else json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(found))
    return ["--truth", f"{folder}/truth.json", "--detections", f"{folder}/found.json"]


@pytest.mark.parametrize("metric", ["segm", "bbox", "boundary"])
def test_table_and_result(run: Callable, metric: str) -> None:
    code, out, err = run(TRUTH, FOUND, "--metric", metric)
    assert code == 0, err
    *above, last = out.splitlines()
    result = json.loads(last.removeprefix("RESULT "), parse_constant=pytest.fail)
    assert result["metric"] == metric
    assert [result[name] for name in ("AP", "AP50", "APm", "AR100")] == pytest.approx([1] * 4)
    # No small object: no number, in a form that every JSON reader takes.
    assert result["APs"] is None
    assert {"AR1", "AR100", "images", "detections", "engine", "seconds"} <= result.keys()
    ap = ["AP", "1.0000", "1.0000", "1.0000", "-", "1.0000", "-"]
    assert any(line.split() == ap for line in above)
    assert any(line.split() == ["dog", "1", "1.0000"] for line in above)


def test_all_categories_stand_in_the_result(run: Callable) -> None:
    _, out, _ = run(TRUTH, FOUND, "--categories", "all")
    result = json.loads(out.splitlines()[-1].removeprefix("RESULT "))
    assert result["per_category"] == {"dog": pytest.approx(1), "bottle": None}


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        (TRUTH, FOUND[0], "found.json: not a list"),
        (FOUND, TRUTH, "swap the files"),
        (TRUTH, [FOUND[0] | {"category_id": 17}], "entry 0: category_id 17"),
        (json.dumps(TRUTH)[:100], FOUND, "truth.json (100 bytes) is not valid JSON"),
    ],
)
def test_bad_input_ends_with_a_sentence_and_2(
    run: Callable, truth: object, found: object, expected: str
) -> None:
    code, out, err = run(truth, found)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert "RESULT" not in out


def test_a_wrong_metric_is_a_usage_error(run: Callable) -> None:
    code, out, err = run(TRUTH, FOUND, "--metric", "mask")
    assert code == 2
    assert "segm" in out + err


def test_the_file_runs_by_itself_without_ray_and_tracker(tmp_path: Path) -> None:
    # -X importtime names every module on stderr.
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(JOB), *_files(tmp_path, TRUTH, FOUND)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines()[-1].startswith("RESULT {")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "pycocotools.mask" in imported
    assert not imported & {"ray", "mlflow", "torch"}
    assert os.access(JOB, os.X_OK)
    assert JOB.read_text().startswith("#!/usr/bin/env python\n")
