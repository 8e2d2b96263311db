"""jobs/evaluate.py prints a table and RESULT, and errors on stderr with exit code 2."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the job in this process: exit code, stdout, stderr."""

    def with_flags(*flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["evaluate.py", *flags])
        try:
            run_verb(evaluate)
        except SystemExit as end:
            code = int(end.code or 0)
        else:
            code = 0
        return code, *capsys.readouterr()

    return with_flags


@pytest.fixture
def run(tmp_path: Path, call: Callable) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the job on a truth and detections: exit code, stdout, stderr."""

    def on_files(truth: object, found: object, *flags: str) -> tuple[int, str, str]:
        return call(*_write_files(tmp_path, truth, found), *flags)

    return on_files


def parse_result(out: str) -> dict:
    return json.loads(out.splitlines()[-1].removeprefix("RESULT "), parse_constant=pytest.fail)


def _write_files(folder: Path, truth: object, found: object) -> list[str]:
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
    # No small object: null, not NaN, which is not JSON.
    assert result["APs"] is None
    assert {"AR1", "AR100", "images", "detections", "engine", "seconds"} <= result.keys()
    ap = ["AP", "1.0000", "1.0000", "1.0000", "-", "1.0000", "-"]
    assert any(line.split() == ap for line in above)
    assert any(line.split() == ["dog", "1", "1.0000"] for line in above)


def test_categories_all_adds_them_to_the_result(run: Callable) -> None:
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
def test_invalid_input_exits_with_2(
    run: Callable, truth: object, found: object, expected: str
) -> None:
    code, out, err = run(truth, found)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert "RESULT" not in out


def test_dilation_ratio(run: Callable) -> None:
    shifted = FOUND[0] | {"segmentation": [[6, 6, 46, 6, 46, 41, 6, 41]]}
    _, narrow, _ = run(TRUTH, [shifted], "--metric", "boundary")
    _, wide, _ = run(TRUTH, [shifted], "--metric", "boundary", "--dilation-ratio", "0.1")
    assert "band 2% of the diagonal" in narrow
    assert "band 10% of the diagonal" in wide
    assert parse_result(narrow)["AP"] < parse_result(wide)["AP"]
    code, _, err = run(TRUTH, [shifted], "--metric", "boundary", "--dilation-ratio", "2")
    assert code == 2
    assert "as a share of the image diagonal" in err


@pytest.mark.parametrize("metric", ["lvis-segm", "lvis-bbox", "lvis-boundary"])
def test_lvis(run: Callable, metric: str) -> None:
    federated = {"neg_category_ids": [44], "not_exhaustive_category_ids": []}
    truth = TRUTH | {
        "images": [each | federated for each in TRUTH["images"]],
        "categories": [each | {"frequency": "c"} for each in TRUTH["categories"]],
    }
    code, out, err = run(truth, FOUND, "--metric", metric, "--categories", "all")
    assert code == 0, err
    result = parse_result(out)
    assert result["APc"] == pytest.approx(1)
    assert result["APr"] is None
    assert result["per_category"] == {"dog": pytest.approx(1), "bottle": None}
    code, _, err = run(TRUTH, FOUND, "--metric", metric)
    assert code == 2
    assert "image without LVIS fields" in err


@pytest.fixture
def frame(tmp_path: Path) -> tuple[Path, Path]:
    """Write a Cityscapes frame and its predictions as instances and as a label map."""
    truth, found = tmp_path / "val" / "ulm", tmp_path / "found"
    truth.mkdir(parents=True)
    found.mkdir()
    name = "ulm_000000_000019"
    instance_map = np.full((60, 90), 7, np.uint16)
    instance_map[10:50, 20:70] = 26000
    label_ids = np.where(instance_map == 7, 7, 26).astype(np.uint8)
    Image.fromarray(instance_map).save(truth / f"{name}_gtFine_instanceIds.png")
    Image.fromarray(label_ids).save(truth / f"{name}_gtFine_labelIds.png")
    (found / "masks").mkdir()
    Image.fromarray((label_ids == 26).astype(np.uint8)).save(found / "masks" / "0.png")
    (found / f"{name}.txt").write_text("masks/0.png 26 0.9\n")
    (tmp_path / "maps").mkdir()
    train_ids = np.where(instance_map == 7, 0, 13).astype(np.uint8)
    train_ids[:30] = 0
    Image.fromarray(train_ids).save(tmp_path / "maps" / f"{name}_pred.png")
    return truth.parent, found


def test_cityscapes_instances(call: Callable, frame: tuple[Path, Path]) -> None:
    truth, found = map(str, frame)
    code, out, err = call(
        "--truth", truth, "--detections", found, "--metric", "cityscapes-instance"
    )
    assert code == 0, err
    result = parse_result(out)
    assert [result[n] for n in ("AP", "AP50", "boundary_AP", "boundary_AP50")] == [1, 1, 1, 1]
    assert result["per_category"]["person"]["AP"] is None
    assert ["car", "1", "1.0000", "1.0000", "1.0000", "1.0000"] in map(str.split, out.splitlines())
    code, _, err = call("--truth", found, "--detections", truth, "--metric", "cityscapes-instance")
    assert code == 2
    assert err.count("swap the folders") == 2


def test_label_maps(call: Callable, frame: tuple[Path, Path]) -> None:
    truth, found = str(frame[0]), str(frame[0].parent / "maps")
    folders = ("--truth", truth, "--detections", found)
    code, out, err = call(*folders, "--metric", "miou", "--truth-ids", "label")
    assert code == 0, err
    assert parse_result(out)["per_category"]["car"] == 0.5
    assert parse_result(out)["mIoU"] == pytest.approx((0.5 + 3400 / 4400) / 2)
    assert ["car", "2000", "0.5000"] in map(str.split, out.splitlines())

    flags = ("--metric", "boundary-f", "--truth-ids", "label", "--absent", "skip")
    code, out, err = call(*folders, *flags, "--radii-px", "2", "60")
    assert code == 0, err
    result = parse_result(out)
    assert 0.5 < result["F_2px"] < result["F_60px"] == 1
    assert result["absent"] == "skip"
    assert "(absent=skip)" in out

    code, _, err = call(*folders, "--metric", "miou")
    assert code == 2
    assert "none is *_gtFine_labelTrainIds.png; there are instanceIds.png, labelIds.png" in err


def test_unused_flags_raise(run: Callable) -> None:
    code, _, err = run(TRUTH, FOUND, "--absent", "skip", "--classes", "7")
    assert code == 2
    assert (
        "--metric segm does not use these flags: --classes needs --metric miou or boundary-f" in err
    )
    assert "--absent needs --metric boundary-f" in err


def test_unknown_metric_is_a_usage_error(run: Callable) -> None:
    code, out, err = run(TRUTH, FOUND, "--metric", "mask")
    assert code == 2
    assert "segm" in out + err


def test_runs_without_ray_mlflow_and_torch(tmp_path: Path) -> None:
    # -X importtime lists every imported module on stderr.
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(JOB), *_write_files(tmp_path, TRUTH, FOUND)],
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
