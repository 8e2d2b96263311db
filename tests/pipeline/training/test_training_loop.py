import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline import storage
from pipeline.errors import RecipeError, TrainingError
from pipeline.recipe import CheckpointConfig, OptimConfig, ScaleConfig
from pipeline.training import checkpoint, loop
from pipeline.training.loop import Hooks, train
from pipeline.training.sample_log import merge_sample_lists
from pipeline.training.step import WorkerContext, train_step
from tests.pipeline.training.tiny_training import TinyModel, fake_steps, job_of


def run(job, *, steps=10, hooks=None, **stream):
    """Train from the latest checkpoint; fewer `steps` than the recipe's simulate a crash."""
    return train(
        job,
        worker=WorkerContext(),
        batches=partial(fake_steps, steps=steps, **stream),
        hooks=hooks or Hooks(build=lambda _: TinyModel()),
        resume_from=checkpoint.find_latest(job.run_uri),
    )


def load_final(job):
    latest = checkpoint.find_latest(job.run_uri)
    assert latest.step == 10
    return checkpoint.load(latest)


def forget_checksums(ref):
    """Make a checkpoint look like one of an earlier version."""
    file = Path(ref.uri, "checkpoint.json")
    info = json.loads(file.read_text())
    del info["sha256"], info["manifest_sha256"]
    file.write_text(json.dumps(info))


def read_sample_lists(job):
    return {
        path.name: path.read_bytes() for path in sorted(Path(job.run_uri, "samples").glob("*.csv"))
    }


@pytest.mark.parametrize(
    ("crash_after", "optimizer"), [(4, "sgd"), (5, "sgd"), (7, "adamw"), (9, "sgd")]
)
def test_a_resumed_run_ends_bit_for_bit_like_an_unbroken_one(recipe, crash_after, optimizer):
    recipe = replace(recipe, optim=replace(recipe.optim, optimizer=optimizer))
    straight, broken = job_of(recipe, name="straight"), job_of(recipe, name="broken")
    run(straight)
    with pytest.raises(TrainingError, match=f"ended before step {crash_after}"):
        run(broken, steps=crash_after)
    assert run(broken).step == 10
    one, two = load_final(straight), load_final(broken)
    for name, weight in one["model"].items():
        assert torch.equal(weight, two["model"][name]), name
    for index, state in one["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, two["optimizer"]["state"][index][key]), key
    assert read_sample_lists(straight) == read_sample_lists(broken)
    assert (
        merge_sample_lists(straight.run_uri, steps=10, global_batch=4)[1]
        == merge_sample_lists(broken.run_uri, steps=10, global_batch=4)[1]
    )


def test_the_average_of_the_weights_survives_a_resume_bit_for_bit(recipe):
    recipe = replace(recipe, optim=replace(recipe.optim, ema_decay=0.9))
    straight, broken = job_of(recipe, name="straight"), job_of(recipe, name="broken")
    run(straight)
    with pytest.raises(TrainingError, match="ended before step 5"):
        run(broken, steps=5)
    run(broken)
    one, two = load_final(straight), load_final(broken)
    for name, weight in one["average"].items():
        assert torch.equal(weight, two["average"][name]), name
    assert not torch.equal(one["average"]["conv.weight"], one["model"]["conv.weight"])


def test_the_sample_list_matches_the_batches(job):
    run(job)
    uri, _ = merge_sample_lists(job.run_uri, steps=10, global_batch=4)
    rows = [line.split(",") for line in storage.read_bytes(uri).decode().splitlines()]
    assert rows[0] == ["step", "epoch", "lane", "image_id"]
    assert [int(row[3]) for row in rows[1:]] == [i % 10 for i in range(40)]


def test_a_missing_step_in_the_sample_list_is_an_error(job):
    run(job)
    next(Path(job.run_uri, "samples").glob("steps-00000004-*.csv")).unlink()
    with pytest.raises(TrainingError, match="has 24 rows"):
        merge_sample_lists(job.run_uri, steps=10, global_batch=4)


def test_microbatches_give_the_gradient_of_the_whole_batch(recipe):
    gradients = []
    for images_per_microbatch in (1, 2, 4):
        torch.manual_seed(0)
        model = TinyModel().eval()
        optimizer = loop.build_optimizer(model, optim=recipe.optim)
        item = next(fake_steps(0, steps=1, images_per_microbatch=images_per_microbatch))
        train_step(
            model,
            optimizer,
            microbatches=item.microbatches,
            step=0,
            optim=recipe.optim,
            device=torch.device("cpu"),
        )
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[2])


def test_a_bad_batch_is_reported_and_saved_and_does_not_update_the_weights(job):
    result = run(job, steps=10, poisoned=frozenset({8}))
    assert result.step == 3
    assert "step 2 (epoch 0" in result.error
    assert "loss_mask" in result.error
    assert "8, 9, 0, 1" in result.error
    assert job.resume_command in result.error
    record = json.loads(Path(job.run_uri, "bad_batch.json").read_text())
    assert record["step"] == 2
    assert record["image_ids"] == [8, 9, 0, 1]
    assert record["workers"][0]["losses"]["loss_mask"] == "nan"
    assert math.isfinite(record["workers"][0]["losses"]["loss_box"])
    assert record["lr"] == pytest.approx(0.2 * (0.001 + 0.999 * 2 / 3))


def test_a_full_gpu_is_said_without_torchs_advice(job, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. 1.20 GiB is free. Of the allocated "
            "memory 20 GiB is allocated by PyTorch. If reserved but unallocated memory is large "
            "try setting PYTORCH_ALLOC_CONF=x"
        )

    monkeypatch.setattr(loop, "train_step", fail)
    with pytest.raises(TrainingError) as raised:
        run(job)
    assert str(raised.value).startswith("rank 0, step 0, images [0, 1, 2, 3]: CUDA out of memory.")
    assert "1.20 GiB is free.\nUse fewer images at once (--scale.images-per-microbatch " in str(
        raised.value
    )
    assert "PYTORCH" not in str(raised.value)


def test_a_bad_batch_is_found_at_the_next_log_line_on_a_gpu(job, monkeypatch):
    """The numbers are read after step 6 only, and the error still names step 5."""
    monkeypatch.setattr(loop.StepMetrics, "has_bad_step", lambda _: False)
    seen = []
    monkeypatch.setattr(loop.checkpoint, "save", lambda *_a, **k: seen.append(k["step"]))
    result = run(job, poisoned=frozenset({21}), samples=22)
    assert "step 5 (epoch 0" in result.error
    assert "20, 21, 0, 1" in result.error
    assert seen == [4]


def test_progress_line_and_metrics(job):
    lines, points = [], []
    hooks = Hooks(
        build=lambda _: TinyModel(),
        print_line=lines.append,
        log=lambda step, m: points.append((step, m)),
    )
    run(job, hooks=hooks)
    assert [step for step, _ in points] == [1, 3, 4, 6, 8, 9, 10]
    assert lines[3].startswith("step 6/10  loss ")
    assert lines[3].endswith("  eta 0:00:00")
    assert "(mask " in lines[3]
    assert " box " in lines[3]
    assert "lr 0.2  " in lines[3]
    assert "lr 0.02  " in lines[-1]
    assert "img/s  data " in lines[3]
    assert points[-1][1]["loss"] == pytest.approx(
        points[-1][1]["loss_mask"] + points[-1][1]["loss_box"]
    )


def test_old_checkpoints_are_pruned_and_incomplete_ones_ignored(job):
    run(job)
    assert [ref.step for ref in checkpoint.find_all(job.run_uri)] == [8, 10]
    last = Path(checkpoint.find_latest(job.run_uri).uri)
    (last / "checkpoint.json").rename(last / "elsewhere.json")
    assert checkpoint.find_latest(job.run_uri).step == 8
    eighth = Path(checkpoint.find_latest(job.run_uri).uri)
    (eighth / "checkpoint.json").unlink()
    assert checkpoint.find_latest(job.run_uri) is None


def test_a_damaged_checkpoint_without_checksum_names_the_folder_to_delete(job):
    run(job)
    latest = checkpoint.find_latest(job.run_uri)
    forget_checksums(latest)
    weights_file = Path(latest.uri, "checkpoint.pt")
    weights_file.write_bytes(b"x" * weights_file.stat().st_size)
    with pytest.raises(TrainingError, match="Delete this folder"):
        run(job)


def test_a_checkpoint_has_plain_content(job):
    run(job)
    content = checkpoint.load(checkpoint.find_latest(job.run_uri))
    assert content["step"] == 10
    assert content["categories"] == [[7, 0, "cat"], [9, 1, "dog"]]
    assert set(content["rng"]) == {"torch", "cuda"}


def test_another_recipe_under_the_same_name_is_refused_with_the_difference(job):
    run(job)
    latest = checkpoint.find_latest(job.run_uri)
    optim = replace(job.identity.recipe.optim, lr_per_image=0.1)
    other = replace(
        job.identity,
        recipe=replace(job.identity.recipe, optim=optim, seed=3),
        data_fingerprint="xyz",
        categories=((7, 0, "cat"), (9, 1, "wolf")),
    )
    with pytest.raises(RecipeError) as error:
        checkpoint.require_same(latest, identity=other)
    for part in (
        "optim.lr_per_image: 0.05 -> 0.1",
        "seed: 0 -> 3",
        "data: abc -> xyz",
        "['cat', 'dog'] -> ['cat', 'wolf']",
        "--name tiny-2",
    ):
        assert part in str(error.value)


def test_scale_and_paths_may_change_in_a_resume(job):
    run(job)
    free = replace(
        job.identity.recipe,
        scale=ScaleConfig(num_workers=4),
        checkpoint=CheckpointConfig(every_steps=1, keep=5),
        storage="elsewhere",
        data=replace(job.identity.recipe.data, root="moved"),
    )
    checkpoint.require_same(
        checkpoint.find_latest(job.run_uri), identity=replace(job.identity, recipe=free)
    )


def test_a_stream_that_skips_a_step_is_an_error(job):
    with pytest.raises(TrainingError, match="gave step 1 instead of step 0"):
        train(
            job,
            worker=WorkerContext(),
            batches=lambda _: fake_steps(1, steps=10),
            hooks=Hooks(build=lambda _: TinyModel()),
            resume_from=None,
        )


def test_a_compiled_run_has_the_checkpoints_of_one_that_is_not(recipe, monkeypatch):
    compiled = []

    def compile_without_inductor(model):
        compiled.append(model)
        return real(model, backend="eager", fullgraph=True)

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_without_inductor)
    plain = job_of(replace(recipe, name="plain"), name="plain")
    run(plain)
    assert compiled == []
    fast = replace(recipe, optim=replace(recipe.optim, compile=True))
    job = job_of(fast, name="compiled")
    run(job)
    assert [type(model) for model in compiled] == [TinyModel]
    expected, found = load_final(plain)["model"], load_final(job)["model"]
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert torch.equal(weight, found[name]), name
    # It may be turned off, and on, in a resume.
    latest = checkpoint.find_latest(job.run_uri)
    checkpoint.require_same(latest, identity=replace(job.identity, recipe=recipe))


def test_clipping_limits_the_update(recipe):
    moved = []
    for clip in (None, 1e-3):
        optim = OptimConfig(
            global_batch=4, lr_per_image=0.05, steps=10, warmup_steps=0, clip_norm=clip
        )
        job = job_of(recipe, name=f"clip-{clip}", optim=optim)
        torch.manual_seed(recipe.seed)
        before = TinyModel().state_dict()
        run(job)
        after = load_final(job)["model"]
        moved.append(max((after[k] - before[k]).abs().max().item() for k in before))
    assert moved[1] < 0.2 * 10 * 2e-3 < moved[0]
