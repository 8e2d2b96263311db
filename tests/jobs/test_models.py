"""python jobs/models.py, verb by verb, as a user types it."""

import importlib.metadata
import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from mlflow import MlflowClient

from bsm.build import build_model
from bsm.checkpoints.weights import save_weights
from jobs.models import VERBS
from pipeline.cli import run_verb
from pipeline.data.manifest import read_manifest
from pipeline.registry.provenance import EvaluationRecord, TrainingData
from pipeline.registry.register import register
from tests.pipeline.evaluation.tiny_split import write_split

ON = "0123456789abcdef, 60 images"


def make_record(boundary_ap, *, on=ON, kind3=0.5):
    return EvaluationRecord(
        evaluated_on=on,
        metrics={
            "mask_ap": 0.4,
            "mask_ap_small": 0.2,
            "mask_ar_1": 0.3,
            "boundary_ap": boundary_ap,
            "boundary_ap_small": 0.1,
            "boundary_ap_large": math.nan,
        },
        per_category={
            "kind3": {"mask_ap": 0.5, "boundary_ap": kind3},
            "kind17": {"mask_ap": 0.4, "boundary_ap": 0.1},
            "kind90": {"mask_ap": 0.3, "boundary_ap": math.nan},
        },
    )


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> str:
    return write_split(tmp_path_factory.mktemp("models") / "val")


@pytest.fixture(scope="module")
def weights(registered_model, tmp_path_factory):
    """Three files of different random weights."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in range(3):
        torch.manual_seed(seed)
        model = build_model(registered_model.recipe.model)
        save_weights(model, folder / f"{seed}.safetensors")
    return folder


@pytest.fixture
def family(registered_model, weights, split, request):
    """A model of three versions: the first, a better one, and one evaluated on other images."""
    name = request.node.name.replace("_", "-")[:60]
    manifest = read_manifest(split)
    training_data = replace(
        TrainingData.from_manifest(manifest),
        source="drawn by hand",
        category_images={"kind3": 300, "kind17": 7, "kind90": 90},
    )
    records = (
        make_record(0.30),
        make_record(0.35, kind3=0.7),
        make_record(0.9, on="other, 9 images"),
    )
    for seed, record in enumerate(records):
        register(
            registered_model.handle,
            name=name,
            weights_path=weights / f"{seed}.safetensors",
            recipe=registered_model.recipe,
            categories=manifest.categories,
            evaluation=record,
            training_data=training_data,
        )
    return name


@pytest.fixture
def run_job(registered_model, monkeypatch, capsys):
    """Run a verb and return its output and RESULT; `expect_error` returns the error instead."""

    def run(*words):
        flags = ("--tracking-uri", registered_model.handle.tracking_uri)
        monkeypatch.setattr(sys, "argv", ["jobs/models.py", *words, *flags])
        capsys.readouterr()
        run_verb(VERBS)
        text, _, result = capsys.readouterr().out.rpartition("RESULT ")
        return text, json.loads(result, parse_constant=pytest.fail)

    def expect_error(*words):
        with pytest.raises(SystemExit) as stopped:
            run(*words)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    run.expect_error = expect_error
    return run


def champion(registered_model, name):
    store = MlflowClient(registered_model.handle.tracking_uri)
    return store.get_model_version_by_alias(name, "champion")


def test_a_list_shows_each_version_with_its_numbers(family, run_job):
    text, result = run_job("list", family)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:5] == ["model", "version", "alias", "boundary_ap", "mask_ap"]
    assert [line[1:5] for line in lines[1:]] == [
        ["3", "-", "0.9000", "0.4000"],
        ["2", "champion", "0.3500", "0.4000"],
        ["1", "-", "0.3000", "0.4000"],
    ]
    assert result["versions"][1] == {"uri": f"models:/{family}/2", "aliases": ["champion"]}
    everything, _ = run_job("list")
    assert family in everything
    assert "tiny" in everything


def test_the_model_card_reports_task_data_and_metrics(family, run_job, registered_model):
    text, result = run_job("show", family)
    assert result["model"] == f"models:/{family}/2"
    for part in (
        f"# {family}, version 2",
        "Finds objects of 3 categories in photos, with a mask for each: Mask R-CNN with the "
        "boundary squeeze (released variant, kernel size 5) on resnet18.",
        "| license | not stated |",
        "Trained on 20 images with 30 annotations, fingerprint tiny: drawn by hand.",
        "kind3 (300), kind17 (7), kind90 (90)",
        f"Measured on {ON}.",
        "| boundary AP | 0.3500 | - | - | 0.1000 | - | - |",
        "| kind3 | 300 | 0.5000 | 0.7000 |",
        "boundary_ap 0.3000 (version 1) -> 0.3500",
        f'mlflow.pyfunc.load_model("models:/{family}/2")',
        f"--model.weights models:/{family}/2",
        "Set `MLFLOW_TRACKING_URI` to the registry",
        "Fewer than 20 training images: kind17.",
        "Not measured, as the evaluation has none: kind90.",
        f"torch {importlib.metadata.version('torch')}",
    ):
        assert part in text, part
    assert not any(line.endswith(" ") for line in text.splitlines())
    held = champion(registered_model, family)
    assert held.description.startswith("Finds objects of 3 categories")
    assert "boundary_ap 0.3500" in held.description
    # It is also a file of the version, as of its last change.
    store = MlflowClient(registered_model.handle.tracking_uri)
    folder = held.source.removeprefix(store.get_run(held.run_id).info.artifact_uri + "/")
    stored = store.download_artifacts(held.run_id, f"{folder}/model_card.md")
    with open(stored) as stream:  # noqa: PTH123
        assert stream.read().strip() == text.strip()


def test_compare_shows_sizes_and_the_categories_that_changed(family, run_job):
    text, result = run_job("compare", family, "--version", "1")
    assert text.splitlines()[0] == f"version 1 beside version 2, both on {ON}"
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["boundary_ap"] == ["0.3500", "0.3000", "-0.0500"]
    assert rows["mask_ap_small"] == ["0.2000", "0.2000", "+0.0000"]
    assert rows["kind3"] == ["0.7000", "0.5000", "-0.2000"]
    assert "mask_ar_1" not in rows
    assert "kind17" not in rows
    assert (result["metric"], result["change"]) == ("boundary_ap", pytest.approx(-0.05))
    assert "compared with itself" in run_job.expect_error("compare", family)
    error = run_job.expect_error("compare", f"models:/{family}/3")
    assert "have no metric on the same images" in error
    assert "--data SHARDS_OF_A_SPLIT" in error


def test_promote_refuse_force_and_roll_back(family, run_job, registered_model):
    error = run_job.expect_error("promote", family, "--version", "1")
    assert "boundary_ap 0.3500 (version 2) -> 0.3000 falls by 0.0500" in error
    assert f"promote {family} --version 1 --force --reason" in error
    assert "no metric on the same images" in run_job.expect_error("promote", f"models:/{family}/3")
    assert "needs a reason" in run_job.expect_error("promote", family, "--version", "1", "--force")
    assert champion(registered_model, family).version == 2

    reason = "version 2 is too slow for the shop"
    text, result = run_job("promote", family, "--version", "1", "--force", "--reason", reason)
    assert f"{family} version 1 is now the champion, forced: boundary_ap 0.3500" in text
    assert result["is_champion"]
    held = champion(registered_model, family)
    assert (held.version, held.tags["forced_because"]) == (1, reason)
    assert (
        f"forced: version 1 became the champion; boundary_ap 0.3500 (version 2) -> 0.3000. "
        f"Reason: {reason}" in run_job("show", family)[0]
    )
    assert reason in run_job("show", family, "--version", "2")[0], (
        "the card of the former champion too"
    )

    text, result = run_job("promote", f"models:/{family}/2")
    assert "version 2 is now the champion, promoted: boundary_ap 0.3000 (version 1)" in text
    assert "is already the champion" in run_job("promote", f"models:/{family}@champion")[0]

    assert (
        "version 1 is the champion again: rolled back from version 2"
        in run_job("rollback", family)[0]
    )
    assert "version 2 is the champion again" in run_job("rollback", family)[0]
    assert "version 1 is the champion again" in run_job("rollback", family)[0]
    error = run_job.expect_error("rollback", family)
    assert "no version was its champion before version 1" in error
    assert "rolled back: version 1 became the champion" in run_job("show", family)[0]


def test_versions_are_evaluated_on_a_split_only_once(family, run_job, split, caplog):
    text, result = run_job("evaluate", f"models:/{family}/3", "--data", split)
    assert result["evaluated_on"] == "tiny, 20 images"
    assert result["metrics"]["mask_ap_large"] is None
    assert "| boundary AP |" in text
    assert "Measured on tiny, 20 images." in run_job("show", f"models:/{family}/3")[0]
    caplog.clear()
    text, result = run_job("compare", f"models:/{family}/3", "--data", split)
    assert result["evaluated_on"] == "tiny, 20 images"
    started = [line for line in caplog.messages if line.startswith("evaluating")]
    assert started == [f"evaluating models:/{family}/2 on {split}"]
    # Both have been evaluated, so the split is not needed any more.
    again, _ = run_job("compare", f"models:/{family}/3")
    assert again.splitlines()[-12:] == text.splitlines()[-12:]


def test_a_split_of_other_categories_is_refused(run_job, registered_model, split):
    error = run_job.expect_error("evaluate", registered_model.name, "--data", split)
    assert "has 3 categories (disk, star, tube)" in error
    assert "has 3 (kind3, kind17, kind90)" in error


def test_unknown_models_are_answered_with_those_that_exist(family, run_job):
    error = run_job.expect_error("show", "nobody")
    assert f"{family} (newest version: models:/{family}/3, aliases: champion)" in error
    assert "must be models:/NAME@ALIAS" in run_job.expect_error("show", f"models:/{family}")
    assert "must be a number" in run_job.expect_error("show", family, "--version", "two")
    assert run_job("list", "nobody")[0].startswith("no versions of nobody")


@pytest.mark.parametrize("words", [("list",), ("show", "anything"), ("rollback", "anything")])
def test_an_unreachable_registry_is_one_sentence(words, capsys, monkeypatch):
    # Nothing listens on the discard port; MLflow would retry for some seconds.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = "http://127.0.0.1:9"
    monkeypatch.setattr(sys, "argv", ["jobs/models.py", *words, "--tracking-uri", away])
    with pytest.raises(SystemExit) as ended:
        run_verb(VERBS)
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert "http://127.0.0.1:9 does not answer" in text
    assert "--tracking-uri http://HOST:PORT" in text
    assert "HTTPConnectionPool" not in text


def test_a_rollback_of_an_unknown_model_creates_nothing(run_job, tmp_path, capsys, monkeypatch):
    assert "there is no model nothing" in run_job.expect_error("rollback", "nothing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["jobs/models.py", "rollback", "nothing"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit):
        run_verb(VERBS)
    assert "no registry at" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
