"""Raw data, shards, checkpoints, runs and artifacts in a bucket: a model's life in one process.

The keys to the bucket come from the environment, and nothing that is written or logged holds them.
"""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load as load_safetensors

from bsm.build import build_model
from pipeline import storage
from pipeline.data.ingest import CocoIngest, ingest_coco
from pipeline.data.manifest import read_manifest
from pipeline.data.sources.shapes import write_shapes
from pipeline.errors import RecipeError, RegistryError
from pipeline.registry.lifecycle import content_of
from pipeline.registry.predict import pull
from pipeline.registry.versions import find
from pipeline.training import checkpoint, launch
from pipeline.training.finished_run import register_run
from pipeline.training.preflight import check
from tests.object_stores import ACCESS_KEY, SECRET_KEY, everything_in, s3_bucket
from tests.pipeline.training.tiny_run import tiny_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Ingest from S3 to S3, train there and register: what is in the bucket, on disk and logged."""
    here = tmp_path_factory.mktemp("road")
    lines: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: lines.append(record.getMessage())
    write_shapes(here / "coco", train_images=8, val_images=4)
    with s3_bucket() as bucket, pytest.MonkeyPatch.context() as patch:
        for path in (here / "coco").rglob("*.*"):
            name = path.relative_to(here).as_posix()
            storage.write_bytes_atomic(storage.join(bucket, "raw", name), path.read_bytes())
        tracking = f"sqlite:///{here}/tracking/mlflow.db"
        (here / "tracking").mkdir()
        MlflowClient(tracking, tracking).create_experiment(
            "boundary-squeeze", artifact_location=f"{bucket}/artifacts"
        )
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        patch.setattr(logging.getLogger(), "level", logging.INFO)
        logging.getLogger().addHandler(listener)
        shards = f"{bucket}/shards"
        for split in ("train", "val"):
            ingest_coco(
                CocoIngest(
                    root=f"{bucket}/raw/coco", split=split, out=f"{shards}/{split}", workers=0
                )
            )
        recipe = tiny_recipe(shards, f"{bucket}/runs", name="far", num_workers=0)
        recipe = replace(
            recipe,
            optim=replace(recipe.optim, steps=3, warmup_steps=1),
            checkpoint=replace(recipe.checkpoint, every_steps=2),
            tracking=replace(recipe.tracking, model_name="far"),
        )
        result = launch.run(recipe)
        yield SimpleNamespace(
            bucket=bucket, here=here, recipe=recipe, result=result, registry=tracking, lines=lines
        )
        logging.getLogger().removeHandler(listener)


def test_all_that_a_run_leaves_is_in_the_bucket(road):
    keys = set(everything_in(road.bucket))
    for key in (
        "shards/train/dataset.json",
        "runs/far/recipe.json",
        "runs/far/model.safetensors",
        "runs/far/metrics.json",
        "runs/far/checkpoints/step-00000003/checkpoint.pt",
    ):
        assert key in keys
    assert any(key.startswith("artifacts/") and key.endswith("model_card.md") for key in keys)
    assert road.result["checkpoint"] == f"{road.bucket}/runs/far/checkpoints/step-00000003"
    assert not Path("s3:").exists()


def test_a_planted_secret_is_in_no_file_and_no_log_line(road):
    files = everything_in(road.bucket)
    files |= {str(p): p.read_bytes() for p in road.here.rglob("*") if p.is_file()}
    assert len(files) > 40
    assert any("recipe" in line for line in road.lines)
    files["log"] = "\n".join(road.lines).encode()
    for secret in (SECRET_KEY, ACCESS_KEY):
        assert [name for name, data in files.items() if secret.encode() in data] == []


def test_the_registered_model_is_pulled_from_the_bucket(road):
    assert find("far", registry=road.registry).source.startswith(f"{road.bucket}/artifacts/")
    pulled = pull("models:/far@champion", tracking=road.registry)
    assert pulled.uri == "models:/far/1"
    photo = next((road.here / "coco" / "val").rglob("*.*"))
    rows = pulled.model.predict([str(photo)], params={"score_threshold": 0.0})
    assert len(rows) > 0


def test_a_version_carries_what_stands_behind_it(road):
    content = content_of(find("models:/far/1", registry=road.registry))
    manifest = read_manifest(f"{road.bucket}/shards/train")
    assert content.recipe == road.recipe
    assert content.trained_on.fingerprint == manifest.fingerprint
    assert content.trained_on.images == 8
    assert sum(content.trained_on.category_images.values()) > 0
    measured = content.evaluations[0]
    assert {"boundary_ap", "boundary_ap_small", "mask_ap_large"} <= set(measured.metrics)
    assert set(measured.per_category) == {category.name for category in manifest.categories}
    assert content.origin.environment.packages["torch"]


def test_training_starts_from_a_registered_version_and_keeps_to_it(road, monkeypatch):
    """The alias is looked up once: a resume starts from the same weights when it has moved on."""
    base = road.recipe
    tuned = replace(
        base,
        name="tuned",
        model=replace(base.model, weights="models:/far@champion"),
        tracking=replace(base.tracking, model_name=""),
    )
    checked = check(tuned)
    assert checked.started_from == "models:/far/1"
    registered = load_safetensors(storage.read_bytes(road.result["weights"]))
    for name, value in checked.model.state_dict().items():
        assert torch.equal(value, registered[name]), name
    store = MlflowClient(road.registry, road.registry)
    store.delete_registered_model_alias("far", "champion")
    try:
        again = check(tuned)
        assert again.started_from == "models:/far/1"
        # What the workers read is the run's own copy, wherever the registry is by then.
        assert again.recipe.model.weights == f"{road.bucket}/runs/tuned/start.safetensors"
        result = launch.run(tuned)
        assert result["steps"] == 3
        assert checkpoint.find_latest(f"{road.bucket}/runs/tuned").step == 3
        with pytest.raises(RegistryError, match=r"far@champion is not in .*it holds: far"):
            check(replace(tuned, name="another"))
    finally:
        store.set_registered_model_alias("far", "champion", 1)
    made = register_run(f"{road.bucket}/runs/tuned", name="tuned", tracking=road.registry)
    assert made.uri == "models:/tuned/1"
    version = find(made.uri, registry=road.registry)
    assert content_of(version).origin.started_from == "models:/far/1"
    assert register_run(f"{road.bucket}/runs/tuned", name="tuned").uri == made.uri


def test_a_version_that_does_not_fit_is_named_as_it_was_typed(road):
    squeeze = replace(road.recipe.model.mask_head, kind="plain")
    model = replace(road.recipe.model, weights="models:/far/1", mask_head=squeeze)
    build_model(replace(model, weights=""))
    with pytest.raises(RecipeError, match=r"models:/far/1.*--model\.weights-leave-out"):
        check(replace(road.recipe, name="misfit", model=model))


def test_a_run_that_is_not_finished_is_not_registered(road):
    storage.write_bytes_atomic(
        f"{road.bucket}/runs/begun/recipe.json",
        storage.read_bytes(f"{road.bucket}/runs/far/recipe.json"),
    )
    with pytest.raises(RegistryError, match="is not finished: it is at step 0 of 3"):
        register_run(f"{road.bucket}/runs/begun", name="begun")
    with pytest.raises(RegistryError, match="is no folder of a run"):
        register_run(f"{road.bucket}/runs/nowhere", name="begun")
