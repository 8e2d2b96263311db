"""A sweep on Ray: trials are evaluated and stopped, a killed sweep resumes, and no trial ingests.

It starts in a Ray of its own, which is killed with it, next to another Ray on the machine, where
Ray Train's own cleanup of stopped runs fails. It resumes in the other Ray, in which SIGTERM and the
lock of a sweep are tried too, with trials that only wait.
"""

import contextlib
import csv
import gc
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import ray
from mlflow import MlflowClient
from ray.tune.schedulers import TrialScheduler

from pipeline.data.manifest import read_manifest
from pipeline.errors import RecipeError, Terminated
from pipeline.evaluation.checkpoint_metrics import load_metrics
from pipeline.recipe import from_json
from pipeline.training.run_lock import hold_run
from pipeline.tuning import sweep as sweeps
from pipeline.tuning.search import SweepScheduler
from pipeline.tuning.space import Range, Sweep
from pipeline.tuning.trial import parse_trial_number
from tests.logged_lines import collect_lines
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KERNEL = "model.mask_head.targets.kernel_size"
BOUNDARY = "model.mask_head.loss_weights.boundary"
TRIALS = 2

PROGRAM = """
import sys
from pathlib import Path
from pipeline.cli import main_sweep
from pipeline.tuning import sweep
from tests.system.test_sweep_ray import StopFirstTrial, make_sweep
sweep.SweepScheduler = StopFirstTrial
main_sweep(make_sweep(Path(sys.argv.pop(1))))
"""


class StopFirstTrial(SweepScheduler):
    """After so few steps, the choice of the scheduler itself would be random."""

    def on_trial_result(self, tune_controller, trial, result):
        if parse_trial_number(str(trial)) == 1:
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE


def make_sweep(folder: Path) -> Sweep:
    recipe = tiny_recipe(folder / "shards", folder / "runs", name="sweep", num_workers=1)
    return Sweep(
        recipe=replace(
            recipe,
            optim=replace(recipe.optim, steps=8, warmup_steps=1),
            checkpoint=replace(recipe.checkpoint, every_steps=2),
            # Gives a metric that such short trials differ in; AP is 0 after 8 steps.
            evaluation=replace(recipe.evaluation, boxes="truth"),
        ),
        ranges=(Range(field=BOUNDARY, low=0.5, high=2.0),),
        kernel_sizes=(3, 5),
        trials=TRIALS,
        metric="boundary_iou",
    )


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=(folder / "killed.txt").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill(process: subprocess.Popen) -> None:
    """Kill the program and its Ray, like a machine that crashes."""
    if process.poll() is not None:
        return
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait(timeout=60)


def wait_for_file(path: Path, process: subprocess.Popen, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the sweep ended early; see its log"
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.2)


class Killed(NamedTuple):
    folder: Path
    result: dict
    """Of the sweep that resumed."""
    lines: list[str]
    """Logged by it."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory, one_ray) -> Killed:
    """Run a sweep whose first trial is stopped, kill it in the second, and resume it."""
    folder = tmp_path_factory.mktemp("sweep")
    write_shards(folder, train_images=16)
    (folder / "shards.json").write_text(json.dumps(list_shards(folder)))
    first = start(folder)
    try:
        file = trial_folder(folder, 2) / "checkpoints" / "step-00000002" / "checkpoint.json"
        wait_for_file(file, first, seconds=400)
    finally:
        kill(first)
    (folder / "killed").touch()
    with collect_lines() as lines:
        result = sweeps.run_sweep(make_sweep(folder), resume=True)
    return Killed(folder, result, lines)


@pytest.fixture(scope="module")
def folder(killed) -> Path:
    return killed.folder


@pytest.fixture(scope="module")
def result(killed) -> dict:
    return killed.result


def list_shards(folder: Path) -> list:
    files = sorted(each for each in (folder / "shards").rglob("*") if each.is_file())
    return [[str(each), each.stat().st_mtime_ns, each.stat().st_size] for each in files]


def test_a_killed_sweep_resumes_its_trials(folder, result, killed):
    first, second = (folder / "killed.txt").read_text(), "\n".join(killed.lines)
    assert "trial 1 stopped early at step 2" in first
    assert "trial 2 of 2" in first
    assert "resuming: 1 of 2 trials ended, 1 unfinished" in second
    assert "trial 1 of 2" not in second
    assert "trial 2 finished" in second
    counts = [result[f"trials_{state}"] for state in ("finished", "stopped", "failed")]
    assert counts == [1, 1, 0]
    # The second trial did not train its first steps again.
    first_list = min((trial_folder(folder, 2) / "samples").glob("*.csv"))
    assert first_list.stat().st_mtime < (folder / "killed").stat().st_mtime
    store = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    runs = list_child_runs(store, result)
    assert sorted(run.info.run_name for run in runs) == [
        f"sweep-00{n}" for n in range(1, TRIALS + 1)
    ]


@pytest.fixture
def waiting_sweep(tmp_path, one_ray, monkeypatch) -> Iterator[tuple[Sweep, Path]]:
    """Return a sweep whose first trial only waits, and the file that it writes before."""
    begun = tmp_path / "begun"

    def build_waiting(_):
        def wait(config):
            begun.touch()
            time.sleep(600)

        return wait

    monkeypatch.setattr(sweeps, "build_trainable", build_waiting)
    write_shards(tmp_path, train_images=4)
    yield make_sweep(tmp_path), begun
    # The traceback holds the trial.
    gc.collect()
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_sigterm_stops_a_sweep_with_the_command_that_goes_on(waiting_sweep):
    sweep, begun = waiting_sweep

    def terminate() -> None:
        while not begun.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(Terminated, match=r"^stopped by SIGTERM\. Resume with: .* --resume$"):
        sweeps.run_sweep(sweep, resume=False)
    store = MlflowClient(f"sqlite:///{sweep.recipe.storage}/mlflow.db")
    found = store.search_runs([each.experiment_id for each in store.search_experiments()])
    assert [run.info.status for run in found] == ["KILLED"]
    # A sweep that is not declared cannot be resumed.
    assert Path(sweep.recipe.storage, "sweep", "sweep.json").exists()


def test_a_sweep_that_another_process_holds_is_refused(waiting_sweep):
    sweep, begun = waiting_sweep
    folder = f"{sweep.recipe.storage}/sweep"
    with (
        hold_run(folder),
        pytest.raises(RecipeError, match=rf"{folder} is held by .*\(pid {os.getpid()}"),
    ):
        sweeps.run_sweep(sweep, resume=False)
    assert not begun.exists()


def trial_folder(folder: Path, number: int) -> Path:
    return folder / "runs" / "sweep" / f"sweep-{number:03d}"


def list_child_runs(store: MlflowClient, result: dict) -> list:
    parent = store.get_run(result["run_id"])
    return list(
        store.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{result['run_id']}'"
        )
    )


def test_all_kernel_sizes_train_on_the_same_shards(folder, result):
    """The squeeze field has the targets of every kernel size, so no shard is written."""
    assert list_shards(folder) == json.loads((folder / "shards.json").read_text())
    runs = list_child_runs(MlflowClient(f"sqlite:///{folder}/runs/mlflow.db"), result)
    assert {run.data.params[KERNEL] for run in runs} == {"3", "5"}
    fingerprint = read_manifest(str(folder / "shards" / "train")).fingerprint
    assert {run.data.tags["data_fingerprint"] for run in runs} == {fingerprint}


def test_every_trial_is_evaluated_and_has_a_final_state(folder, result):
    rows = csv.DictReader(io.StringIO((folder / "runs" / "sweep" / "trials.csv").read_text()))
    rows = {int(row["trial"]): row for row in rows}
    assert {n: row["state"] for n, row in rows.items()} == {1: "stopped", 2: "finished"}
    # A trial trains on until its processes have ended, and what it evaluates counts.
    stopped_at = int(rows[1]["step"])
    assert (2 <= stopped_at < 8, rows[2]["step"]) == (True, "8")
    assert [rows[n][KERNEL] for n in (1, 2)] == ["3", "5"]
    folders = [str(trial_folder(folder, number)) for number in (1, 2)]
    evaluated = [list(load_metrics(each)) for each in folders]
    assert evaluated == [list(range(2, stopped_at + 1, 2)), [2, 4, 6]]
    store = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    for run in list_child_runs(store, result):
        number = int(run.info.run_name.rpartition("-")[2])
        steps = {point.step for point in store.get_metric_history(run.info.run_id, "boundary_iou")}
        last = int(rows[number]["step"])
        assert steps >= set(range(2, last + 1, 2))
        state = {"finished": "FINISHED", "stopped": "KILLED"}[rows[number]["state"]]
        assert run.info.status == state
        assert run.info.run_id == rows[number]["run_id"]


def test_the_winner_is_a_recipe_for_a_job(folder, result):
    recipe = from_json(Path(result["winner_json"]).read_text())
    assert recipe.name == "sweep-winner"
    assert recipe.model.mask_head.targets.kernel_size == result["values"][KERNEL]
    assert recipe.model.mask_head.loss_weights.boundary == result["values"][BOUNDARY]
    trial = from_json(Path(result["winner_run"], "recipe.json").read_text())
    assert trial.model == recipe.model
    assert trial.optim == recipe.optim
    assert Path(result["sweep_png"]).stat().st_size > 10_000
    artifacts = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db").list_artifacts(result["run_id"])
    files = {"trials.csv", "winner.json", "sweep.png", "report.html"}
    assert files <= {each.path for each in artifacts}
