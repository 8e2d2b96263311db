"""jobs/finetune.py, as a user types it."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bsm.build import _RANDOM_FUNCTIONS
from jobs import finetune
from pipeline.data.ingest import CocoIngest, ingest_dataset
from pipeline.data.manifest import read_manifest
from pipeline.recipe import from_json
from pipeline.training import launch, preflight
from tests.pipeline.evaluation.tiny_maps_split import write_maps_split
from tests.pipeline.training.tiny_run import write_shards

COCO = "torchvision:MaskRCNN_ResNet50_FPN_Weights.COCO_V1"


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("finetune"), train_images=10, val_images=2)


@pytest.fixture
def run_job(shards, registered_model, monkeypatch, capsys, tmp_path):
    """Run the job and return its output; `expect_error` returns the error instead."""

    def run(*words, root=shards, name="tuned"):
        flags = ("--data.root", str(root), "--storage", str(tmp_path / "runs"), "--name", name)
        registry = ("--tracking.uri", registered_model.handle.tracking_uri)
        monkeypatch.setattr(sys, "argv", ["jobs/finetune.py", *flags, *registry, *words])
        capsys.readouterr()
        finetune.main()
        return capsys.readouterr().out

    def expect_error(*words, **options):
        with pytest.raises(SystemExit) as stopped:
            run(*words, **options)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    run.expect_error = expect_error
    return run


@pytest.fixture
def print_recipe(run_job):
    """Return the recipe that would run."""
    return lambda *words, **options: from_json(run_job(*words, "--print-recipe", **options))


@pytest.fixture
def notices(run_job, monkeypatch, caplog):
    """Return what the job says before it trains."""

    def read(*words, **options):
        monkeypatch.setattr(launch, "run", lambda recipe, *, row: {"name": recipe.name})
        caplog.clear()
        caplog.set_level(logging.INFO, logger="pipeline.cli")
        run_job(*words, **options)
        return [each for each in caplog.messages if each.startswith("fine-tune: ")]

    return read


def test_a_registered_model_is_tuned_on_ten_images_and_registered(
    run_job, print_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(launch, "_write_report", lambda *_: "")  # it takes seconds
    words = ("--from", "models:/tiny@champion", "--optim.steps", "2", "--optim.global-batch", "1")
    first = json.loads(run_job(*words).rpartition("RESULT ")[2])
    assert first["steps"] == 2
    assert first["model"] == "models:/tuned/1"
    run = tmp_path / "runs" / "tuned"
    assert json.loads((run / "start.json").read_text())["version"] == "models:/tiny/1"
    recipe = from_json((run / "recipe.json").read_bytes())
    assert recipe.model.weights == "models:/tiny@champion"
    # The same command resumes.
    assert print_recipe(*words) == recipe


def test_categories_continue_by_name(print_recipe, notices, shards, registered_model):
    names = [each.name for each in read_manifest(f"{shards}/train").categories]
    known = [each.name for each in registered_model.categories]
    model = print_recipe("--from", "models:/tiny@champion").model
    expected = tuple(known.index(name) if name in known else -1 for name in names)
    assert model.num_classes == len(names)
    assert model.weights_categories == expected
    assert sorted(set(expected))[0] == -1 < max(expected)
    assert model.backbone == registered_model.recipe.model.backbone
    kept = [name for name in names if name in known]
    new = [name for name in names if name not in known]
    assert notices("--from", "models:/tiny@champion")[0] == (
        f"fine-tune: from models:/tiny/1 (3 categories): {len(kept)} of {len(names)} continue by "
        f"name: {', '.join(kept)}; at random: {', '.join(new)}"
    )


class FillWithNan(TorchFunctionMode):
    """Leave NaN where random values would be, as memory that was used before may hold it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in _RANDOM_FUNCTIONS:
            result.data.fill_(torch.nan)
        return result


def test_categories_that_start_at_random_are_not_taken_for_a_damaged_file(run_job, monkeypatch):
    monkeypatch.setattr(preflight, "SkipRandomInit", FillWithNan)
    monkeypatch.setattr(launch, "_write_report", lambda *_: "")  # it takes seconds
    words = ("--from", "models:/tiny@champion", "--optim.steps", "1", "--optim.global-batch", "1")
    assert '"steps": 1' in run_job(*words)


def test_a_model_without_a_common_category_is_a_notice(notices, print_recipe):
    assert set(print_recipe("--from", COCO).model.weights_categories) == {-1}
    assert notices("--from", COCO)[0].startswith(
        f"fine-tune: from {COCO} (90 categories): none of its categories has the name of one here"
    )


def test_names_of_coco_are_found_in_torchvisions_and_detectron2s_models(tmp_path, print_recipe):
    for split in ("train", "val"):
        write_coco(tmp_path / "coco", split, names=("Traffic_Light", "dog", "balloon"))
        out = str(tmp_path / "shards" / split)
        ingest_dataset(CocoIngest(root=str(tmp_path / "coco"), split=split, out=out, workers=0))
    root = tmp_path / "shards"
    # Ids of COCO with gaps, less one: the background of torchvision is dropped.
    assert print_recipe("--from", COCO, root=root).model.weights_categories == (9, 17, -1)
    zoo = "detectron2:COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
    assert print_recipe("--from", zoo, root=root).model.weights_categories == (9, 16, -1)


def write_coco(root: Path, split: str, *, names: tuple[str, ...]) -> None:
    from PIL import Image

    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    Image.new("RGB", (64, 48)).save(root / split / "a.png")
    square = [4, 4, 30, 4, 30, 30, 4, 30]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(names)],
        "annotations": [
            {
                "id": index + 1,
                "image_id": 1,
                "category_id": index + 1,
                "segmentation": [square],
                "bbox": [4, 4, 26, 26],
                "area": 676,
                "iscrowd": 0,
            }
            for index in range(len(names))
        ],
    }
    file = root / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps(content))


def test_what_the_user_sets_stays_and_the_rest_follows(print_recipe, notices):
    derived = print_recipe("--from", COCO).optim
    assert (derived.global_batch, derived.steps, derived.warmup_steps) == (2, 300, 30)
    words = ("--from", COCO, "--optim.steps", "50", "--optim.global-batch=4")
    optim = print_recipe(*words, "--model.backbone.freeze-at", "0").optim
    assert (optim.global_batch, optim.steps, optim.warmup_steps) == (4, 50, 5)
    flags = [notice.split()[1] for notice in notices(*words)[1:]]
    assert flags == [
        "--optim.lr-per-image",
        "--optim.schedule",
        "--optim.warmup-steps",
        "--checkpoint.every-steps",
        "--data.copy-paste",
    ]


def test_a_model_of_another_task_is_refused(tmp_path, run_job):
    maps = Path(write_maps_split(tmp_path / "maps", images=1))
    splits = ("--data.train-split", maps.name, "--data.val-split", maps.name)
    error = run_job.expect_error("--from", COCO, *splits, root=maps.parent)
    assert "is a model of task instance" in error
    assert "holds semantic shards" in error


@pytest.mark.parametrize(
    ("start", "problem"),
    [
        ("models:/none@champion", "models:/none@champion is not in"),
        ("models:/tiny@best", "models:/tiny@best is not in"),
        ("torchvision:MaskRCNN_Weights.COCO_V1", "torchvision:MaskRCNN_ResNet50_FPN_V2_Weights"),
        ("torchvision:ResNet50_Weights.IMAGENET1K_V2", "no whole model is known by this name"),
        ("model.pth", "no whole model is known by this name"),
        ("model:/tiny@champion", "perhaps you meant models:/tiny@champion"),
    ],
)
def test_a_model_that_does_not_exist_is_refused(run_job, start, problem):
    assert problem in run_job.expect_error("--from", start)


def test_a_folder_without_splits_is_refused(run_job, tmp_path):
    error = run_job.expect_error("--from", COCO, root=tmp_path)
    assert "holds no shards; make them with: bsm ingest" in error
    error = run_job.expect_error("--from", COCO, root=tmp_path / "none")
    assert "there is no such folder" in error


def test_a_split_is_no_folder_of_splits(run_job, shards):
    error = run_job.expect_error("--from", COCO, root=shards / "train")
    assert f"is a split itself; give the folder that it is in, --data.root {shards}" in error


def test_both_flags_are_needed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jobs/finetune.py"])
    with pytest.raises(SystemExit):
        finetune.main()
    assert "--from and --data.root must be given" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["jobs/finetune.py", "--help"])
    with pytest.raises(SystemExit):
        finetune.main()
    shown = capsys.readouterr().out
    assert "usage: jobs/finetune.py --data.root SHARDS --from MODEL" in shown
    assert "--optim.steps" in shown
