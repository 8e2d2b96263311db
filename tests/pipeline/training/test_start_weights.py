"""Start weights: files are made local, and a registered version is resolved once."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.semantic import DeepLabConfig
from pipeline import storage
from pipeline.data.manifest import Category
from pipeline.errors import RegistryError
from pipeline.registry.versions import WEIGHTS_FILE, Version
from pipeline.serving.artifacts import categories_to_json
from pipeline.training import start_weights
from pipeline.training.start_weights import (
    read_start_version,
    resolve_start_weights,
    to_absolute,
    with_local_weights,
)

CATEGORIES = (Category(category_id=7, category_index=0, name="cat"),)
MODEL = MaskRCNNConfig(weights="models:/far@champion")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry whose only version is models:/far/1."""
    file = tmp_path / "version" / WEIGHTS_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(b"registered")
    tags = {"weights_sha256": hashlib.sha256(b"registered").hexdigest()}
    version = Version(
        registry="sqlite://",
        name="far",
        version="1",
        source=str(tmp_path / "version"),
        run_id="",
        created_ms=0,
        tags=tags,
    )
    monkeypatch.setattr(start_weights, "find_version", lambda model, *, registry: version)
    monkeypatch.setattr(
        start_weights, "read_file", lambda *_: categories_to_json(CATEGORIES).encode()
    )
    return file


@pytest.fixture
def run_uri(tmp_path) -> str:
    return str(tmp_path / "run")


def test_paths_become_absolute_but_names_do_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert to_absolute("start.pth") == str(tmp_path / "start.pth")
    published = ("torchvision:A_Weights.B", "detectron2:C/d", "hf-hub:timm/resnet50.a1_in1k")
    for name in ("", "timm", "models:/far@champion", "s3://bucket/start.pth", *published):
        assert to_absolute(name) == name


def test_remote_weights_are_downloaded_while_the_model_is_built(tmp_path, monkeypatch):
    remote = tmp_path / "remote" / "start.pth"
    remote.parent.mkdir()
    remote.write_bytes(b"weights")
    monkeypatch.setattr(storage, "is_local", lambda _: False)
    model = replace(DeepLabConfig(), weights=str(remote))
    with with_local_weights(model) as local_model:
        local = Path(local_model.weights)
        assert (local.name, local.read_bytes()) == ("start.pth", b"weights")
        assert local != remote
        # The weights of the whole model include the backbone's.
        assert local_model.backbone.weights == ""
    assert not local.exists()


def test_local_weights_are_used_in_place(tmp_path):
    backbone = replace(MaskRCNNConfig().backbone, weights=str(tmp_path / "backbone.pth"))
    model = MaskRCNNConfig(backbone=backbone)
    with with_local_weights(model) as local_model:
        assert local_model == model


def test_a_registered_version_is_pinned_and_no_longer_looked_up(
    recipe, registry, run_uri, monkeypatch
):
    with resolve_start_weights(MODEL, recipe, run_uri=run_uri) as start:
        assert Path(start.local_model.weights).read_bytes() == b"registered"
        assert (start.version, start.categories) == ("models:/far/1", CATEGORIES)
        text = f"{start.local_model.weights}: no key"
        assert start.name_version(text) == "models:/far/1: no key"
        assert read_start_version(run_uri) == ""
        start.pin()
    assert read_start_version(run_uri) == "models:/far/1"
    record = json.loads(Path(run_uri, "start.json").read_text())
    assert record == {"typed": "models:/far@champion", "version": "models:/far/1"}

    def fail(*_args, **_kwargs):
        raise AssertionError("the registry must not be asked again")

    monkeypatch.setattr(start_weights, "find_version", fail)
    with resolve_start_weights(MODEL, recipe, run_uri=run_uri) as again:
        assert again.version == "models:/far/1"
        assert again.model.weights == f"{run_uri}/start.safetensors"
        assert Path(again.local_model.weights).read_bytes() == b"registered"
    # Another reference is looked up.
    other = replace(MODEL, weights="models:/far/2")
    with (
        pytest.raises(AssertionError, match="asked again"),
        resolve_start_weights(other, recipe, run_uri=run_uri),
    ):
        pass


def test_weights_that_changed_after_registration_are_refused(recipe, registry, run_uri):
    registry.write_bytes(b"changed")
    with (
        pytest.raises(RegistryError, match=r"models:/far/1: its weights were changed"),
        resolve_start_weights(MODEL, recipe, run_uri=run_uri),
    ):
        pass


def test_other_weights_need_no_registry(recipe, tmp_path, run_uri):
    model = replace(MODEL, weights=str(tmp_path / "start.pth"))
    with resolve_start_weights(model, recipe, run_uri=run_uri) as start:
        assert start.model == model
        assert start.version == ""
        assert start.name_version("start.pth: no key") == "start.pth: no key"
        start.pin()
    assert read_start_version(run_uri) == ""


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """A file under any published name, and the names and mirrors that were asked for."""
    file = tmp_path / "cache" / "published-0123.pth"
    file.parent.mkdir()
    file.write_bytes(b"published")
    asked = []

    def fetch(name, *, mirror=""):
        asked.append((name, mirror))
        return file

    monkeypatch.setattr(start_weights, "fetch_weights", fetch)
    return asked


NAMED = "torchvision:MaskRCNN_ResNet50_FPN_Weights.COCO_V1"


def test_published_weights_are_pinned_and_not_fetched_again(recipe, publisher, run_uri):
    model = replace(MODEL, weights=NAMED)
    recipe = replace(recipe, weights_mirror="/mirror")
    with resolve_start_weights(model, recipe, run_uri=run_uri) as start:
        assert Path(start.local_model.weights).read_bytes() == b"published"
        assert start.version == NAMED
        start.pin()
    assert read_start_version(run_uri) == NAMED
    assert read_start_version(run_uri, typed=NAMED) == NAMED
    assert read_start_version(run_uri, typed="models:/far@champion") == ""
    with resolve_start_weights(model, recipe, run_uri=run_uri) as again:
        assert again.model.weights == f"{run_uri}/start.pth"
        assert Path(again.local_model.weights).read_bytes() == b"published"
        again.pin()
    assert publisher == [(NAMED, "/mirror")]
    # Workers read the run's copy.
    with with_local_weights(again.model) as local_model:
        assert Path(local_model.weights).read_bytes() == b"published"


def test_a_backbone_has_published_weights_of_its_own(recipe, publisher, run_uri):
    name = "hf-hub:timm/resnet50.a1_in1k"
    model = MaskRCNNConfig(backbone=replace(MaskRCNNConfig().backbone, weights=name))
    with resolve_start_weights(model, recipe, run_uri=run_uri) as start:
        assert start.model.backbone.weights == f"{run_uri}/backbone.pth"
        start.pin()
    assert Path(run_uri, "backbone.pth").read_bytes() == b"published"
    assert read_start_version(run_uri) == ""
    # Weights of the whole model include the backbone's.
    whole = replace(model, weights=NAMED)
    with resolve_start_weights(whole, recipe, run_uri=run_uri):
        pass
    assert publisher == [(name, ""), (NAMED, "")]
