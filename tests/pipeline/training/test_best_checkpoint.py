"""The best checkpoint is kept and found, and a run stops early, whatever happens in between."""

from dataclasses import replace

import pytest
import torch

from pipeline.errors import RecipeError, TrainingError
from pipeline.evaluation import checkpoint_metrics
from pipeline.evaluation.checkpoint_metrics import (
    choose_best,
    describe_choice,
    has_stalled,
    save_metrics,
)
from pipeline.recipe import CheckpointConfig
from pipeline.training import best_checkpoint, checkpoint, evaluate_checkpoint
from pipeline.training.loop import Hooks, train
from pipeline.training.step import WorkerContext
from tests.pipeline.training.tiny_training import TinyModel, fake_steps, job_of

SCORES = {2: 0.1, 4: 0.3, 6: 0.3, 8: 0.2, 10: 0.25}
"""Boundary AP that the made evaluations give, by step."""


@pytest.fixture
def evaluated(recipe, monkeypatch):
    """Give a recipe that evaluates every 2 of 10 steps; the scores are made."""

    def evaluate(model, recipe, *, worker):
        # The learning goes on: a step is known by the weights it has.
        step = evaluate.steps[tuple(model.out.bias.tolist())]
        return {"boundary_ap": SCORES[step]} if worker.rank == 0 else {}

    evaluate.steps = {}
    monkeypatch.setattr(evaluate_checkpoint, "evaluate_on_workers", evaluate)
    plain = job_of(
        replace(recipe, checkpoint=CheckpointConfig(every_steps=2, keep=5)), name="plain"
    )
    run(plain)
    for ref in checkpoint.find_all(plain.run_uri):
        evaluate.steps[tuple(checkpoint.load(ref)["model"]["out.bias"].tolist())] = ref.step
    best = CheckpointConfig(every_steps=2, keep=1, best_metric="boundary_ap")
    return replace(recipe, checkpoint=best)


def run(job, *, steps=10, lines=None):
    """Train from the latest checkpoint; fewer `steps` than the recipe's simulate a crash."""
    print_line = (lambda _: None) if lines is None else lines.append
    return train(
        job,
        worker=WorkerContext(),
        batches=lambda first: fake_steps(first, steps=steps),
        hooks=Hooks(build=lambda _: TinyModel(), print_line=print_line),
        resume_from=checkpoint.find_latest(job.run_uri),
    )


def kept(job):
    return [ref.step for ref in checkpoint.find_all(job.run_uri)]


@pytest.mark.parametrize("crash_after", [None, 3, 4, 5, 8, 9])
def test_the_best_checkpoint_is_kept_beside_the_last_ones(evaluated, crash_after):
    job = job_of(evaluated)
    if crash_after is not None:
        with pytest.raises(TrainingError, match="ended before step"):
            run(job, steps=crash_after)
    run(job)
    # Of two equal ones the first is the best.
    assert kept(job) == [4, 10]
    assert best_checkpoint.find_best(job.run_uri, job.recipe.checkpoint, step=10).step == 4


@pytest.mark.parametrize("crash_after", [None, 4, 5, 7, 8])
def test_a_run_stops_early_at_the_same_step_after_any_resume(evaluated, crash_after):
    patient = replace(evaluated.checkpoint, patience=2)
    job, lines = job_of(replace(evaluated, checkpoint=patient)), []
    if crash_after == 8:
        # Stopped, but killed before the run could end: it stops there again, with no step.
        run(job)
    elif crash_after is not None:
        with pytest.raises(TrainingError, match="ended before step"):
            run(job, steps=crash_after)
    result = run(job, lines=lines)
    assert (result.step, result.stopped_early) == (8, True)
    assert (result.steps_here == 0) == (crash_after == 8)
    assert kept(job) == [4, 8]
    assert best_checkpoint.is_done(job.run_uri, job.recipe, step=8)
    if lines:
        assert lines[-1] == "step 8  boundary_ap .20  best step 4"
    # More patience trains on, to the weights of a run that never stopped.
    more = replace(patient, patience=3)
    assert not best_checkpoint.is_done(job.run_uri, replace(job.recipe, checkpoint=more), step=8)
    result = run(job_of(replace(evaluated, checkpoint=more)))
    assert (result.step, result.stopped_early) == (10, False)
    ends = [
        checkpoint.load(checkpoint.find_latest(uri))["model"]
        for uri in (job.run_uri, job.run_uri.replace("tiny", "plain"))
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_metrics_without_their_checkpoint_do_not_count(evaluated):
    job = job_of(evaluated)
    with pytest.raises(TrainingError):
        run(job, steps=5)
    # Evaluated at step 6, and killed before the checkpoint was whole.
    save_metrics(job.run_uri, {"boundary_ap": 0.9}, step=6)
    assert best_checkpoint.find_best(job.run_uri, job.recipe.checkpoint, step=6).step == 4
    run(job)
    assert checkpoint_metrics.load_metrics(job.run_uri)[6] == {"boundary_ap": 0.3}
    assert kept(job) == [4, 10]


def test_the_lowest_loss_and_the_highest_score_are_the_best():
    found = {1: {"val_loss": 2.0, "miou": 0.5}, 2: {"val_loss": 1.0, "miou": 0.4}, 3: {}}
    assert choose_best(found, "val_loss") == 2
    assert choose_best(found, "miou") == 1
    assert choose_best(found, "box_ap") is None


def test_a_model_that_finds_nothing_yet_does_not_stop():
    config = CheckpointConfig(best_metric="mask_ap", patience=2)
    found = {step: {"mask_ap": score} for step, score in enumerate([0, 0, 0, 0.1, 0, 0])}
    assert [has_stalled(found, config, step=step) for step in found] == [False] * 5 + [True]


def test_of_models_that_find_nothing_the_last_counts():
    config = CheckpointConfig(best_metric="mask_ap")
    found = {step: {"mask_ap": 0.0} for step in (8, 16, 24)}
    assert choose_best(found, "mask_ap") == 24
    assert describe_choice(found, config, steps=24) == (
        "The model is the checkpoint of step 24: mask_ap is 0 in all of 3 evaluations, so the last "
        "one counts."
    )


def test_the_choice_is_told_in_words():
    config = CheckpointConfig(best_metric="val_loss", patience=1)
    found = {5: {"val_loss": 2.0}, 10: {"val_loss": 2.5}}
    assert describe_choice(found, config, steps=20) == (
        "The model is the checkpoint of step 5: val_loss 2.0000 is the best of 2 evaluations. "
        "Training stopped early, at step 10 of 20, after 1 evaluation without a better value."
    )
    assert describe_choice({}, config, steps=20) == ""


def test_patience_needs_a_metric():
    with pytest.raises(RecipeError, match="patience: needs best_metric"):
        CheckpointConfig(patience=2)
