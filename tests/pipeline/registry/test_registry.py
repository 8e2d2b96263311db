"""A model is registered and loaded in a clean process, with equal predictions and no pickle."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from bsm.build import build_model
from bsm.checkpoints.weights import load_weights, save_weights
from pipeline.data.collate import collate_images
from pipeline.data.manifest import Category
from pipeline.errors import RegistryError
from pipeline.evaluation.infer import detect
from pipeline.registry.lifecycle import read_card_content
from pipeline.registry.predict import load_registered_model
from pipeline.registry.provenance import EvaluationRecord
from pipeline.registry.register import register
from pipeline.registry.versions import (
    CATEGORIES_FILE,
    RECIPE_FILE,
    WEIGHTS_FILE,
    Version,
    add_file,
    find_version,
    list_files,
    read_file,
)

CLEAN_PROCESS = """
import ast, base64, importlib.metadata, json, sys
import mlflow, numpy, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
array, png = numpy.load("a.npy"), open("a.png", "rb").read()
params = {"score_threshold": 0.0}
rows = model.predict([array, png, "a.png", base64.b64encode(png).decode()], params=params)
table = pandas.DataFrame({"id": [7], "image": ["a.png"]})
ours = ("bsm", "pipeline")
owned = {n: m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] in ours}
imported = set()
for path in owned.values():
    for node in ast.parse(open(path).read()).body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
homes = importlib.metadata.packages_distributions()
foreign = imported - set(sys.stdlib_module_names) - set(ours)
print(json.dumps({
    "rows": rows.to_dict("records"),
    "table_rows": len(model.predict(table, params=params)),
    "likely_rows": len(model.predict(["a.png"], params={"score_threshold": 1.0})),
    "modules": sorted(sys.modules),
    "files": sorted(owned.values()),
    "distributions": sorted({homes[name][0].lower().replace("_", "-") for name in foreign}),
}))
"""


@pytest.fixture
def photo(tmp_path):
    from PIL import Image

    array = np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    Image.fromarray(array).save(tmp_path / "a.png")
    return array


def find_files(registered):
    run = MlflowClient(registered.handle.tracking_uri).get_run(registered.handle.run_id)
    return Path(run.info.artifact_uri.removeprefix("file://")) / "models"


def test_the_artifact_is_code_and_safetensors(registered_model):
    files = [path for path in find_files(registered_model).rglob("*") if path.is_file()]
    assert files
    plain = {".py", ".json", ".txt", ".yaml", ".md", ".html", ".css", ".js", ""}
    assert {path.suffix for path in files} <= plain | {".safetensors"}
    assert not any(path.suffix == ".pyc" for path in files)
    # A pickle starts with its protocol, whatever the file name.
    assert not any(path.read_bytes()[:2] in {b"\x80\x04", b"\x80\x05"} for path in files)
    assert any(path.name == "squeeze.py" for path in files)
    pins = next(path for path in files if path.name == "requirements.txt").read_text().split()
    assert all("==" in pin and "+" not in pin for pin in pins)
    assert not any(pin.startswith("ray") for pin in pins)


@pytest.mark.slow
def test_a_clean_process_predicts_what_the_trained_model_predicts(
    registered_model, tmp_path, photo
):
    keep = {"PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "OMP_NUM_THREADS"}
    env = {name: value for name, value in os.environ.items() if name in keep}
    env["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    uri = f"models:/{registered_model.name}@champion"
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, registered_model.handle.tracking_uri, uri],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = json.loads(done.stdout.splitlines()[-1])

    model = build_model(registered_model.recipe.model)
    load_weights(model, registered_model.weights)
    batch = collate_images([photo], registered_model.recipe.data)
    expected = detect(model, batch, paste_bytes=2**20)[0]
    assert len(expected) > 2
    for image_index in range(4):
        rows = [row for row in loaded["rows"] if row["image_index"] == image_index]
        assert [row["rle"]["counts"].encode() for row in rows] == [e.rle_counts for e in expected]
        assert rows[0]["rle"]["size"] == [72, 96]
        for row, each in zip(rows, expected, strict=True):
            assert row["category_name"] == ["disk", "star", "tube"][row["category_index"]]
            assert row["category_index"] == each.category_index
            np.testing.assert_allclose(row["score"], each.score, rtol=1e-5)
            np.testing.assert_allclose(row["box_xyxy"], each.box_xyxy, rtol=1e-4, atol=1e-3)
    assert loaded["table_rows"] == len(expected)
    assert loaded["likely_rows"] == 0
    assert {"ray", "vernier", "matplotlib"}.isdisjoint(loaded["modules"])
    # The code of the model was used, not the checkout.
    assert all(path.startswith(str(find_files(registered_model))) for path in loaded["files"])
    pins = next(find_files(registered_model).rglob("requirements.txt")).read_text().lower().split()
    pinned = {pin.partition("==")[0].replace("_", "-") for pin in pins}
    assert {name.replace("_", "-") for name in loaded["distributions"]} <= pinned
    assert done.stderr == "", "loading a model prints no warnings"


def make_record(*, on="val, 60 images", **metrics):
    return EvaluationRecord(evaluated_on=on, metrics=metrics)


def register_again(registered_model, tmp_path, **changes):
    """Register other weights."""
    model = build_model(registered_model.recipe.model)
    save_weights(model, tmp_path / "other.safetensors")
    arguments = {
        "name": registered_model.name,
        "weights_path": tmp_path / "other.safetensors",
        "recipe": registered_model.recipe,
        "categories": registered_model.categories,
        "evaluation": make_record(boundary_ap=0.3),
    }
    return register(registered_model.handle, **(arguments | changes))


def champion(registered_model):
    store = MlflowClient(registered_model.handle.tracking_uri)
    return store.get_model_version_by_alias(registered_model.name, "champion")


def test_only_a_better_version_becomes_the_champion(registered_model, tmp_path):
    name = f"{registered_model.name}-contest"

    def register_with(**metrics):
        return register_again(
            registered_model, tmp_path, name=name, evaluation=make_record(**metrics)
        )

    none = register_with(boundary_ap=float("nan"))
    first = register_with(boundary_ap=0.3)
    equal = register_with(boundary_ap=0.3)
    better = register_with(boundary_ap=0.35)
    unknown = register_with(boundary_ap=float("nan"))
    elsewhere = register_with(on="others, 60 images", boundary_ap=0.9)
    versions = (none, first, equal, better, unknown, elsewhere)
    assert [each.version for each in versions] == ["1", "2", "3", "4", "5", "6"]
    assert [each.is_champion for each in versions] == [False, True, False, True, False, False]
    assert none.decision.endswith("no deciding metric was measured")
    assert first.decision.endswith("is the first champion: boundary_ap 0.3000")
    assert equal.decision == (
        f"{name} version 3 is not the champion: boundary_ap 0.3000 is not above the 0.3000 of "
        "version 2"
    )
    assert better.decision.endswith("boundary_ap 0.3000 (version 2) -> 0.3500")
    assert f"models:/{name}/5 (measured on val, 60 images) and" in unknown.decision
    assert f"compare {name} --version 6 --against 4 --data" in elsewhere.decision
    store = MlflowClient(registered_model.handle.tracking_uri)
    held = store.get_model_version_by_alias(name, "champion")
    assert str(held.version) == "4"
    assert held.tags["metric.boundary_ap"] == "0.350000"
    assert held.tags["recipe_fingerprint"]
    assert held.tags["champion_decision"] == better.decision


def test_weights_that_changed_in_the_artifact_store_are_refused(registered_model):
    tracking = registered_model.handle.tracking_uri
    version = find_version(f"models:/{registered_model.name}/1", registry=tracking)
    file = Path(version.source.removeprefix("file://"), WEIGHTS_FILE)
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        for read in (
            lambda: load_registered_model(version.uri, tracking=tracking),
            lambda: read_file(version, WEIGHTS_FILE),
        ):
            with pytest.raises(RegistryError, match=f"{version.uri}: its weights were changed"):
                read()
    finally:
        file.write_bytes(before)
    assert read_file(version, WEIGHTS_FILE) == before
    unknown = replace(version, tags={})
    assert read_file(unknown, WEIGHTS_FILE) == before


@pytest.mark.parametrize("name", [RECIPE_FILE, CATEGORIES_FILE])
def test_a_recipe_or_categories_that_changed_after_registration_are_refused(registered_model, name):
    tracking = registered_model.handle.tracking_uri
    version = find_version(f"models:/{registered_model.name}/1", registry=tracking)
    file = Path(version.source.removeprefix("file://"), name)
    before = file.read_text()
    file.write_text(before.replace("1", "2", 1))
    try:
        expected = f"{version.uri}: {file.name} of the model: changed after registration"
        with pytest.raises(RegistryError, match=expected):
            load_registered_model(version.uri, tracking=tracking)
    finally:
        file.write_text(before)
    load_registered_model(version.uri, tracking=tracking)


def test_the_same_weights_under_another_name_do_not_change_the_first(registered_model):
    before = {path: path.read_bytes() for path in find_files(registered_model).rglob("*.*")}
    other = register(
        registered_model.handle,
        name="tiny-renamed",
        weights_path=registered_model.weights,
        recipe=registered_model.recipe,
        categories=[Category(category_id=i, category_index=i, name=f"n{i}") for i in range(3)],
        evaluation=make_record(boundary_ap=0.2),
    )
    assert other.is_champion
    assert before == {path: path.read_bytes() for path in before}


def test_the_same_weights_of_a_run_are_one_version(registered_model):
    arguments = {
        "name": registered_model.name,
        "weights_path": registered_model.weights,
        "recipe": registered_model.recipe,
        "categories": registered_model.categories,
        "evaluation": make_record(boundary_ap=0.25),
    }
    repeated = register(registered_model.handle, **arguments)
    assert repeated.version == str(champion(registered_model).version) == "1"
    assert repeated.is_champion


def test_all_problems_are_reported_at_once(registered_model, tmp_path):
    with pytest.raises(RegistryError) as raised:
        register_again(
            registered_model, tmp_path, name="a/b", weights_path=tmp_path / "model.pth",
            categories=registered_model.categories[:2],
        )  # fmt: skip
    for part in ("'a/b'", "model.pth", "2 categories", "num_classes 3"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "use",
    [
        lambda version: list_files(version, ""),
        lambda version: read_file(version, "origin.json"),
        lambda version: add_file(version, "model_card.md", b"card"),
        read_card_content,
    ],
)
def test_files_of_a_moved_store_are_told_where_they_should_be(tmp_path, use):
    inside = "mlartifacts/bsm/run/artifacts/models/abc"
    version = Version(
        registry=f"sqlite:///{tmp_path}/new/mlflow.db",
        name="m",
        version="1",
        source=(tmp_path / "old runs" / inside).as_uri(),
        run_id="run",
        created_ms=0,
    )
    (tmp_path / "new" / inside).mkdir(parents=True)
    with pytest.raises(RegistryError) as raised:
        use(version)
    assert str(raised.value) == (
        f"models:/m/1: there is no folder {tmp_path}/old runs/{inside}: the store was moved from "
        f"{tmp_path}/old runs to {tmp_path}/new, and MLflow keeps absolute paths. Move it back, "
        f"or link it: mkdir -p {tmp_path} && ln -s {tmp_path}/new '{tmp_path}/old runs'"
    )
    assert not (tmp_path / "old runs").exists()


def test_a_version_without_an_origin_is_not_said_to_be_a_strangers(tmp_path):
    version = Version(
        registry=f"sqlite:///{tmp_path}/mlflow.db",
        name="m",
        version="1",
        source=(tmp_path / "mlartifacts" / "gone").as_uri(),
        run_id="run",
        created_ms=0,
    )
    with pytest.raises(RegistryError, match=r"it holds: nothing\): .*moved or removed.*list m$"):
        read_card_content(version)
