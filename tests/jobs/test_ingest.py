"""Every verb of jobs/ingest.py as a command, from a small official layout to the RESULT line."""

import json
import sys

import pytest

from jobs.ingest import VERBS
from pipeline.cli import run_verb
from pipeline.data.audit import audit
from tests.pipeline.data.coco_samples import small_coco
from tests.pipeline.data.lvis_samples import lvis
from tests.pipeline.data.street_samples import bdd, cityscapes, label_maps

MAKERS = {
    "coco": small_coco,
    "lvis": lvis,
    "cityscapes": cityscapes,
    "cityscapes-semantic": cityscapes,
    "bdd": bdd,
    "semantic": label_maps,
}


def run_job(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/ingest.py", *map(str, words)])
    run_verb(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_ends_with_its_result(verb, tmp_path, monkeypatch, capsys):
    root = MAKERS[verb](tmp_path / "data")
    split = {"coco": "tiny", "lvis": "val"}.get(verb, "train")
    flags = ("--classes", "ground", "a house", "tree") if verb == "semantic" else ()
    flags += ("--only-coco-categories",) if verb == "lvis" else ()
    out = tmp_path / "out"
    given = ("--root", root, "--split", split, "--out", out, "--workers", 0)
    run_job(monkeypatch, verb, *given, *flags)
    result = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("RESULT "))
    assert result["images"] > 0
    assert result["rejects"] == 0
    assert audit(str(out), deep=True)["fingerprint"] == result["fingerprint"]


def test_bad_input_exits_with_2_and_the_next_command(tmp_path, monkeypatch, capsys):
    root = label_maps(tmp_path / "data")
    (root / "labels" / "train" / "p1.png").unlink()
    given = ("semantic", "--root", root, "--split", "train", "--out", tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        run_job(monkeypatch, *given, "--workers", 0)
    assert ended.value.code == 2
    stderr = capsys.readouterr().err
    assert "label_missing" in stderr
    line = next(line for line in stderr.splitlines() if line.endswith("--on-bad drop"))
    run_job(monkeypatch, *line.split()[2:])
    assert '"images": 3' in capsys.readouterr().out


def test_a_missing_folder_is_named_itself(tmp_path, monkeypatch, capsys):
    given = ("--root", tmp_path / "nope", "--split", "train", "--out", tmp_path / "out")
    with pytest.raises(SystemExit) as stopped:
        run_job(monkeypatch, "coco", *given)
    assert stopped.value.code == 2
    assert f"{tmp_path}/nope does not exist or is empty" in capsys.readouterr().err
