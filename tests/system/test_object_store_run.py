"""Raw data, shards, checkpoints, runs and artifacts in a bucket, in one process.

The keys to the bucket come from the environment, and are in no file and no log line.
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
from pipeline.data.ingest import CocoIngest, ingest_dataset
from pipeline.data.manifest import read_manifest
from pipeline.data.sources.shapes import write_shapes
from pipeline.errors import RecipeError, RegistryError
from pipeline.registry.lifecycle import promote, read_card_content
from pipeline.registry.predict import load_registered_model
from pipeline.registry.versions import find_version
from pipeline.training import checkpoint, launch
from pipeline.training.finished_run import register_run
from pipeline.training.preflight import prepare_run
from pipeline.training.start_weights import with_local_weights
from tests.object_stores import ACCESS_KEY, SECRET_KEY, read_objects, s3_bucket
from tests.pipeline.training.tiny_run import tiny_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """Ingest from S3 to S3, train and register; return the bucket, the folder and the log."""
    here = tmp_path_factory.mktemp("cloud")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
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
        logging.getLogger().addHandler(handler)
        shards = f"{bucket}/shards"
        for split in ("train", "val"):
            ingest_dataset(
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
        # After three steps it finds nothing, so it has not become the champion by itself.
        version = find_version("models:/far/1", registry=tracking)
        promote(version, force=True, reason="a test of buckets")
        yield SimpleNamespace(
            bucket=bucket, here=here, recipe=recipe, result=result, registry=tracking, lines=lines
        )
        logging.getLogger().removeHandler(handler)


def test_all_outputs_of_a_run_are_in_the_bucket(cloud):
    keys = set(read_objects(cloud.bucket))
    for key in (
        "shards/train/dataset.json",
        "runs/far/recipe.json",
        "runs/far/model.safetensors",
        "runs/far/metrics.json",
        "runs/far/checkpoints/step-00000003/checkpoint.pt",
    ):
        assert key in keys
    assert any(key.startswith("artifacts/") and key.endswith("model_card.md") for key in keys)
    assert cloud.result["checkpoint"] == f"{cloud.bucket}/runs/far/checkpoints/step-00000003"
    assert not Path("s3:").exists()


def test_the_keys_are_in_no_file_and_no_log_line(cloud):
    files = read_objects(cloud.bucket)
    files |= {str(p): p.read_bytes() for p in cloud.here.rglob("*") if p.is_file()}
    assert len(files) > 40
    assert any("recipe" in line for line in cloud.lines)
    files["log"] = "\n".join(cloud.lines).encode()
    for secret in (SECRET_KEY, ACCESS_KEY):
        assert [name for name, data in files.items() if secret.encode() in data] == []


def test_the_registered_model_is_pulled_from_the_bucket(cloud):
    assert find_version("far", registry=cloud.registry).source.startswith(
        f"{cloud.bucket}/artifacts/"
    )
    pulled = load_registered_model("models:/far@champion", tracking=cloud.registry)
    assert pulled.uri == "models:/far/1"
    photo = next((cloud.here / "coco" / "val").rglob("*.*"))
    rows = pulled.model.predict([str(photo)], params={"score_threshold": 0.0})
    assert len(rows) > 0


def test_a_version_has_its_provenance(cloud):
    content = read_card_content(find_version("models:/far/1", registry=cloud.registry))
    manifest = read_manifest(f"{cloud.bucket}/shards/train")
    assert content.recipe == cloud.recipe
    assert content.training_data.fingerprint == manifest.fingerprint
    assert content.training_data.images == 8
    assert sum(content.training_data.category_images.values()) > 0
    evaluation = content.evaluations[0]
    assert {"boundary_ap", "boundary_ap_small", "mask_ap_large"} <= set(evaluation.metrics)
    assert set(evaluation.per_category) == {category.name for category in manifest.categories}
    assert content.origin.environment.packages["torch"]


def test_training_starts_from_a_registered_version_and_keeps_it(cloud):
    """The alias is resolved once: a restart uses the same weights even if the alias moved."""
    base = cloud.recipe
    tuned = replace(
        base,
        name="tuned",
        model=replace(base.model, weights="models:/far@champion"),
        tracking=replace(base.tracking, model_name=""),
    )
    prepared = prepare_run(tuned)
    assert prepared.started_from == "models:/far/1"
    registered = load_safetensors(storage.read_bytes(cloud.result["weights"]))
    with with_local_weights(prepared.recipe.model) as config:
        model = build_model(config)
    for name, value in model.state_dict().items():
        assert torch.equal(value, registered[name]), name
    store = MlflowClient(cloud.registry, cloud.registry)
    store.delete_registered_model_alias("far", "champion")
    try:
        again = prepare_run(tuned)
        assert again.started_from == "models:/far/1"
        # Workers read the run's own copy, even if the registry is unreachable.
        assert again.recipe.model.weights == f"{cloud.bucket}/runs/tuned/start.safetensors"
        result = launch.run(tuned)
        assert result["steps"] == 3
        assert checkpoint.find_latest(f"{cloud.bucket}/runs/tuned").step == 3
        with pytest.raises(RegistryError, match=r"far@champion is not in .*it holds: far"):
            prepare_run(replace(tuned, name="another"))
    finally:
        store.set_registered_model_alias("far", "champion", 1)
    registered_version = register_run(
        f"{cloud.bucket}/runs/tuned", name="tuned", tracking=cloud.registry
    )
    assert registered_version.uri == "models:/tuned/1"
    version = find_version(registered_version.uri, registry=cloud.registry)
    assert read_card_content(version).origin.started_from == "models:/far/1"
    assert register_run(f"{cloud.bucket}/runs/tuned", name="tuned").uri == registered_version.uri


def test_a_version_that_does_not_fit_is_named_in_the_error(cloud):
    plain = replace(cloud.recipe.model.mask_head, kind="plain")
    model = replace(cloud.recipe.model, weights="models:/far/1", mask_head=plain)
    build_model(replace(model, weights=""))
    with pytest.raises(RecipeError, match=r"models:/far/1.*--model\.weights-leave-out"):
        prepare_run(replace(cloud.recipe, name="misfit", model=model))


def test_an_unfinished_run_is_not_registered(cloud):
    storage.write_bytes_atomic(
        f"{cloud.bucket}/runs/begun/recipe.json",
        storage.read_bytes(f"{cloud.bucket}/runs/far/recipe.json"),
    )
    with pytest.raises(RegistryError, match="is not finished: it is at step 0 of 3"):
        register_run(f"{cloud.bucket}/runs/begun", name="begun")
    with pytest.raises(RegistryError, match="is not the folder of a run"):
        register_run(f"{cloud.bucket}/runs/nowhere", name="begun")
