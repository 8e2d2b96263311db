"""A damaged checkpoint is passed over with a reason, wherever checkpoints are read."""

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bsm.configs.instance import MaskRCNNConfig
from pipeline.errors import StorageError, TrainingError
from pipeline.training import checkpoint
from pipeline.training.start_weights import with_local_weights
from tests.pipeline.training.test_training_loop import forget_checksums, load_final, run


def flip_bit(file: Path, *, at: float = 0.5) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def change_recipe(file: Path) -> None:
    text = file.read_text()
    file.write_text(text.replace('"lr_per_image": 0.05', '"lr_per_image": 0.06'))
    assert file.read_text() != text


@pytest.mark.parametrize("text", ["[]", "7", "{}", '{"bytes": "7"}', "[" * 700 + "]" * 700])
def test_a_checkpoint_json_of_something_else_is_passed_over(tmp_path, text: str):
    folder = tmp_path / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(text)
    (folder / "checkpoint.pt").write_bytes(b"x")
    with pytest.raises(StorageError, match=r"checkpoint\.json was changed after it was written"):
        checkpoint.find_latest(str(tmp_path))


def test_a_checkpoint_of_other_content_is_an_error_with_its_format(tmp_path):
    folder = tmp_path / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    torch.save(7, folder / "checkpoint.pt")
    size = (folder / "checkpoint.pt").stat().st_size
    (folder / "checkpoint.json").write_text(json.dumps({"bytes": size}))
    with pytest.raises(TrainingError, match="checkpoint format 'int', this version reads 1"):
        checkpoint.load(checkpoint.get_ref(str(tmp_path), step=3))


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (flip_bit, "checkpoint.pt", "checkpoint.pt was changed after it was written (SHA-256 "),
        (truncate, "checkpoint.pt", " were written"),
        (Path.unlink, "checkpoint.pt", "checkpoint.pt is missing"),
        (Path.unlink, "checkpoint.json", "checkpoint.json is missing"),
        (change_recipe, "checkpoint.json", "checkpoint.json was changed after it was written"),
        (truncate, "checkpoint.json", "checkpoint.json was changed after it was written"),
    ],
)
def test_a_run_resumes_from_the_checkpoint_before_and_says_why(job, caplog, damage, name, reason):
    run(job)
    expected = load_final(job)["model"]
    last = Path(job.run_uri, "checkpoints", "step-00000010")
    damage(last / name)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        assert run(job).steps_here == 2
    assert caplog.messages[0].startswith(f"passed over {last}: ")
    assert reason in caplog.messages[0]
    eighth = last.with_name("step-00000008")
    assert caplog.messages[1] == f"the newest whole checkpoint is {eighth}"
    caplog.clear()
    trained = load_final(job)["model"]
    assert all(torch.equal(value, trained[name]) for name, value in expected.items())
    assert not caplog.messages


def test_a_run_without_a_whole_checkpoint_is_an_error_with_the_next_command(job):
    run(job)
    for ref in checkpoint.find_all(job.run_uri):
        flip_bit(Path(ref.uri, "checkpoint.pt"), at=0.3)
    with pytest.raises(StorageError) as error:
        run(job)
    for text in ("step-00000008: ", "step-00000010: ", "--name tiny-2", f"{job.run_uri}/checkp"):
        assert text in str(error.value)


def test_a_run_that_a_crash_stopped_in_its_first_checkpoint_starts_at_step_0(job, caplog):
    first = Path(job.run_uri, "checkpoints", "step-00000004", "checkpoint.pt")
    first.parent.mkdir(parents=True)
    first.write_bytes(b"a part")
    assert run(job).steps_here == 10
    assert "starts at step 0" in caplog.text


def test_a_damaged_later_checkpoint_does_not_count_among_those_to_keep(job):
    run(job)
    folder = Path(job.run_uri, "checkpoints")
    flip_bit(folder / "step-00000010" / "checkpoint.pt")
    checkpoint.prune(job.run_uri, step=8, keep=1)
    assert checkpoint.find_latest(job.run_uri).step == 8


def test_a_checkpoint_that_changes_while_a_worker_loads_it_is_an_error(job):
    run(job)
    latest = checkpoint.find_latest(job.run_uri)
    flip_bit(Path(latest.uri, "checkpoint.pt"))
    with pytest.raises(TrainingError, match="was changed after it was written"):
        checkpoint.load(latest)


def test_a_damaged_checkpoint_is_refused_as_start_weights(job):
    run(job)
    file = Path(checkpoint.find_latest(job.run_uri).uri, "checkpoint.pt")
    model = replace(MaskRCNNConfig(), weights=str(file))
    with with_local_weights(model) as local_model:
        assert local_model == replace(model, backbone=local_model.backbone)
    flip_bit(file)
    with (
        pytest.raises(StorageError, match=f"weights {file}: .* was changed"),
        with_local_weights(model),
    ):
        pass


def test_checkpoints_of_earlier_versions_have_no_checksums_and_load(job, caplog):
    run(job)
    expected = load_final(job)["model"]
    for ref in checkpoint.find_all(job.run_uri):
        forget_checksums(ref)
    shutil.rmtree(Path(job.run_uri, "checkpoints", "step-00000010"))
    assert run(job).steps_here == 2
    loaded = load_final(job)["model"]
    assert all(torch.equal(value, loaded[name]) for name, value in expected.items())
    assert not caplog.messages


def test_the_manifest_has_the_checksum_that_sha256sum_prints(job):
    run(job)
    latest = Path(checkpoint.find_latest(job.run_uri).uri)
    manifest = json.loads((latest / "checkpoint.json").read_text())
    data = (latest / "checkpoint.pt").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest()
