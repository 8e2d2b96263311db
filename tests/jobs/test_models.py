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
from pipeline.registry.provenance import Measured, TrainedOn
from pipeline.registry.register import register
from tests.pipeline.evaluation.tiny_split import write_split

ON = "0123456789abcdef, 60 images"


def measured(boundary_ap, *, on=ON, kind3=0.5):
    return Measured(
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
    """Three files of random weights, each of its own."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in range(3):
        torch.manual_seed(seed)
        model = build_model(registered_model.recipe.model)
        save_weights(model, folder / f"{seed}.safetensors")
    return folder


@pytest.fixture
def family(registered_model, weights, split, request):
    """A model of three versions: the first, a better one, and one that is measured elsewhere."""
    name = request.node.name.replace("_", "-")[:60]
    manifest = read_manifest(split)
    trained_on = replace(
        TrainedOn.of(manifest),
        source="drawn by hand",
        category_images={"kind3": 300, "kind17": 7, "kind90": 90},
    )
    each = (measured(0.30), measured(0.35, kind3=0.7), measured(0.9, on="other, 9 images"))
    for seed, numbers in enumerate(each):
        register(
            registered_model.handle,
            name=name,
            weights_path=weights / f"{seed}.safetensors",
            recipe=registered_model.recipe,
            categories=manifest.categories,
            measured=numbers,
            trained_on=trained_on,
        )
    return name


@pytest.fixture
def typed(registered_model, monkeypatch, capsys):
    """Type a verb; give what is printed and the RESULT, or what is said when it is refused."""

    def run(*words):
        flags = ("--tracking-uri", registered_model.handle.tracking_uri)
        monkeypatch.setattr(sys, "argv", ["jobs/models.py", *words, *flags])
        capsys.readouterr()
        run_verb(VERBS)
        text, _, result = capsys.readouterr().out.rpartition("RESULT ")
        return text, json.loads(result, parse_constant=pytest.fail)

    def refused(*words):
        with pytest.raises(SystemExit) as stopped:
            run(*words)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    run.refused = refused
    return run


def champion(registered_model, name):
    store = MlflowClient(registered_model.handle.tracking_uri)
    return store.get_model_version_by_alias(name, "champion")


def test_a_list_shows_each_version_with_its_numbers(family, typed):
    text, result = typed("list", family)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:5] == ["model", "version", "alias", "boundary_ap", "mask_ap"]
    assert [line[1:5] for line in lines[1:]] == [
        ["3", "-", "0.9000", "0.4000"],
        ["2", "champion", "0.3500", "0.4000"],
        ["1", "-", "0.3000", "0.4000"],
    ]
    assert result["versions"][1] == {"uri": f"models:/{family}/2", "aliases": ["champion"]}
    everything, _ = typed("list")
    assert family in everything
    assert "tiny" in everything


def test_the_card_says_what_it_is_and_what_stands_behind_it(family, typed, registered_model):
    text, result = typed("show", family)
    assert result["model"] == f"models:/{family}/2"
    for part in (
        f"# {family}, version 2",
        "Finds objects of 3 categories in photos, and draws the mask of each: Mask R-CNN with the "
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
        "`MLFLOW_TRACKING_URI` says where the registry is",
        "Seen in fewer than 20 training images: kind17.",
        "the measured images show none: kind90.",
        f"torch {importlib.metadata.version('torch')}",
    ):
        assert part in text, part
    assert not any(line.endswith(" ") for line in text.splitlines())
    held = champion(registered_model, family)
    assert held.description.startswith("Finds objects of 3 categories")
    assert "boundary_ap 0.3500" in held.description
    # It is among the files of the version, too, as it was when it last changed.
    store = MlflowClient(registered_model.handle.tracking_uri)
    folder = held.source.removeprefix(store.get_run(held.run_id).info.artifact_uri + "/")
    stored = store.download_artifacts(held.run_id, f"{folder}/model_card.md")
    with open(stored) as stream:  # noqa: PTH123
        assert stream.read().strip() == text.strip()


def test_compare_shows_sizes_and_the_categories_that_changed(family, typed):
    text, result = typed("compare", family, "--version", "1")
    assert text.splitlines()[0] == f"version 1 beside version 2, both on {ON}"
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["boundary_ap"] == ["0.3500", "0.3000", "-0.0500"]
    assert rows["mask_ap_small"] == ["0.2000", "0.2000", "+0.0000"]
    assert rows["kind3"] == ["0.7000", "0.5000", "-0.2000"]
    assert "mask_ar_1" not in rows
    assert "kind17" not in rows
    assert (result["metric"], result["change"]) == ("boundary_ap", pytest.approx(-0.05))
    assert "compared with itself" in typed.refused("compare", family)
    said = typed.refused("compare", f"models:/{family}/3")
    assert "have no number of the same images" in said
    assert "--data SHARDS_OF_A_SPLIT" in said


def test_promote_refuse_force_and_roll_back(family, typed, registered_model):
    said = typed.refused("promote", family, "--version", "1")
    assert "boundary_ap 0.3500 (version 2) -> 0.3000 falls by 0.0500" in said
    assert f"promote {family} --version 1 --force --reason" in said
    assert "no number of the same images" in typed.refused("promote", f"models:/{family}/3")
    assert "say why" in typed.refused("promote", family, "--version", "1", "--force")
    assert champion(registered_model, family).version == 2

    reason = "version 2 is too slow for the shop"
    text, result = typed("promote", family, "--version", "1", "--force", "--reason", reason)
    assert f"{family} version 1 is the champion now, forced: boundary_ap 0.3500" in text
    assert result["is_champion"]
    held = champion(registered_model, family)
    assert (held.version, held.tags["forced_because"]) == (1, reason)
    assert (
        f"forced: version 1 became the champion; boundary_ap 0.3500 (version 2) -> 0.3000. "
        f"Because: {reason}" in typed("show", family)[0]
    )
    assert reason in typed("show", family, "--version", "2")[0], "who lost it is told, too"

    text, result = typed("promote", f"models:/{family}/2")
    assert "version 2 is the champion now, promoted: boundary_ap 0.3000 (version 1)" in text
    assert "is the champion already" in typed("promote", f"models:/{family}@champion")[0]

    assert "version 1 is the champion again: from version 2" in typed("rollback", family)[0]
    assert "version 2 is the champion again" in typed("rollback", family)[0]
    assert "version 1 is the champion again" in typed("rollback", family)[0]
    said = typed.refused("rollback", family)
    assert "no version was its champion before version 1" in said
    assert "rolled back: version 1 became the champion" in typed("show", family)[0]


def test_versions_are_measured_on_one_split_and_only_once(family, typed, split, caplog):
    text, result = typed("evaluate", f"models:/{family}/3", "--data", split)
    assert result["evaluated_on"] == "tiny, 20 images"
    assert result["metrics"]["mask_ap_large"] is None
    assert "| boundary AP |" in text
    assert "Measured on tiny, 20 images." in typed("show", f"models:/{family}/3")[0]
    caplog.clear()
    text, result = typed("compare", f"models:/{family}/3", "--data", split)
    assert result["evaluated_on"] == "tiny, 20 images"
    started = [line for line in caplog.messages if line.startswith("measuring")]
    assert started == [f"measuring models:/{family}/2 on {split}"]
    # Both are measured by now: the numbers are there without the split.
    again, _ = typed("compare", f"models:/{family}/3")
    assert again.splitlines()[-12:] == text.splitlines()[-12:]


def test_a_split_of_other_categories_measures_nothing(typed, registered_model, split):
    said = typed.refused("evaluate", registered_model.name, "--data", split)
    assert "knows 3 categories (disk, star, tube)" in said
    assert "has 3 (kind3, kind17, kind90)" in said


def test_what_is_not_there_is_answered_with_what_is(family, typed):
    assert f"{family} (aliases: champion)" in typed.refused("show", "nobody")
    assert "must be models:/NAME@ALIAS" in typed.refused("show", f"models:/{family}")
    assert "must be a number" in typed.refused("show", family, "--version", "two")
    assert typed("list", "nobody")[0].startswith("no version of nobody")


@pytest.mark.parametrize("words", [("list",), ("show", "anything"), ("rollback", "anything")])
def test_a_registry_that_is_away_is_said_in_one_sentence(words, capsys, monkeypatch):
    # Nobody listens on the discard port; MLflow would try again for some seconds.
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


def test_a_rollback_of_nothing_says_so_and_makes_nothing(typed, tmp_path, capsys, monkeypatch):
    assert "no version is called nothing" in typed.refused("rollback", "nothing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["jobs/models.py", "rollback", "nothing"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit):
        run_verb(VERBS)
    assert "no registry at" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
