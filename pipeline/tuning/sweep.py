"""A whole sweep: check, search, and what came of it as files and in MLflow.

Everything is in STORAGE/NAME: what was declared (sweep.json), Ray Tune's own state, and at the end
trials.csv, sweep.png and winner.json, the recipe of the best trial. The trials are runs in it,
STORAGE/NAME/NAME-001 and so on.
"""

import json
import logging
import math
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from ray import tune

from pipeline import storage
from pipeline.data.manifest import read_manifest
from pipeline.errors import RecipeError, TrainingError
from pipeline.recipe import to_json
from pipeline.recipe_json import leaves, to_plain
from pipeline.tracking import runs
from pipeline.tracking.runs import RunHandle
from pipeline.tracking.stores import sqlite_path
from pipeline.training import evaluate_checkpoint
from pipeline.training.capacity import start_ray
from pipeline.training.launch import resume_command
from pipeline.training.preflight import absolute_paths, check
from pipeline.training.progress import header
from pipeline.tuning.concurrency import trials_at_once
from pipeline.tuning.plot import picture
from pipeline.tuning.results import (
    Importance,
    Trial,
    as_csv,
    as_table,
    importance,
    kernel_curve,
    winner,
)
from pipeline.tuning.search import Halving, search
from pipeline.tuning.space import Sweep, applied, short, shown, trial_name
from pipeline.tuning.trial import Setting, number_of, trainable
from pipeline.tuning.trial_progress import Progress

__all__ = ["run_sweep"]

_log = logging.getLogger(__name__)

_DECLARED = "sweep.json"

_FREE = ("parallel", "recipe.scale.", "recipe.tracking.", "recipe.storage")
"""What may change when a sweep goes on: nothing of it changes what a trial ends with."""


def run_sweep(sweep: Sweep, *, resume: bool) -> dict[str, Any]:
    """Search to the end.

    Args:
        sweep: what is searched.
        resume: go on with the sweep of this name.

    Returns:
        The RESULT line: name, counts of trials, the best one's number, values and metric, how much
        each value mattered, and where everything is.

    Raises:
        PipelineError: what is wrong with data, recipe or sweep, before anything starts; or no trial
            finished.
        KeyboardInterrupt: it was stopped before its last trial.
    """
    folder = storage.absolute(storage.join(sweep.recipe.storage, sweep.recipe.name))
    begun = _has_begun(sweep, folder, resume=resume)
    check(sweep.recipe)
    data = read_manifest(storage.join(sweep.recipe.data.root, sweep.recipe.data.train_split))
    handle = runs.open_run(sweep.recipe, data_fingerprint=data.fingerprint)
    start_ray(sweep.recipe)
    if not begun:
        declared = json.dumps(to_plain(sweep), indent=1)
        storage.write_bytes_atomic(storage.join(folder, _DECLARED), declared.encode())
    _log.info("%s", header(_facts(sweep, handle, folder)))
    try:
        trials = _search(sweep, handle, folder, resume=resume)
        result = _keep(sweep, handle, folder, trials)
    except KeyboardInterrupt:
        runs.finish(handle, "KILLED")
        _log.info("Stopped. Go on with: %s", _resume_command())
        raise
    except BaseException:
        runs.finish(handle, "FAILED")
        raise
    runs.finish(handle)
    return result


def _has_begun(sweep: Sweep, folder: str, *, resume: bool) -> bool:
    """See that a sweep that goes on is the one that began, and that no new one takes its place."""
    uri, name = storage.join(folder, _DECLARED), sweep.recipe.name
    begun = storage.exists(uri)
    if not begun and resume:
        raise RecipeError(
            f"there is no sweep {name} in {sweep.recipe.storage} to go on with; start it without "
            "--resume, or name its place with --storage and --name"
        )
    if begun and not resume:
        raise RecipeError(
            f"sweep {name} has begun in {sweep.recipe.storage}. Go on with it: --resume. Or start "
            f"another one: --name {name}-2"
        )
    if not begun:
        return False
    before, now = leaves(json.loads(storage.read_bytes(uri))), leaves(to_plain(sweep))
    changed = [
        f"  {field}: {json.dumps(before.get(field))} -> {json.dumps(now.get(field))}"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field) and not field.startswith(_FREE)
    ]
    if changed:
        raise RecipeError(
            f"sweep {name} in {sweep.recipe.storage} began as another one:\n"
            + "\n".join(changed)
            + "\nIt goes on only as it began. Give the values on the left, or start another one: "
            f"--name {name}-2"
        )
    return True


def _facts(sweep: Sweep, handle: RunHandle, folder: str) -> list[tuple[str, str]]:
    recipe = sweep.recipe
    ranges = ", ".join(f"{short(r.field)} {r.low:g} to {r.high:g}" for r in sweep.ranges)
    return [
        ("sweep", f"{recipe.name}: {sweep.trials} trials, the best {sweep.metric} wins"),
        ("searched", f"kernel_size {', '.join(map(str, sweep.kernel_sizes))}; {ranges}"),
        (
            "a trial",
            f"{recipe.optim.steps} steps of {recipe.optim.global_batch} images on "
            f"{recipe.scale.num_workers} workers, measured each {recipe.checkpoint.every_steps}",
        ),
        ("shards", f"{storage.absolute(recipe.data.root)}, the same for every trial"),
        ("results", folder),
        ("tracking", handle.url),
        ("resume", _resume_command()),
    ]


def _resume_command() -> str:
    command = resume_command()
    return command if "--resume" in command else f"{command} --resume"


def _search(sweep: Sweep, handle: RunHandle, folder: str, *, resume: bool) -> list[Trial]:
    recipe = absolute_paths(sweep.recipe)
    if sqlite_path(handle.tracking_uri) is not None:
        # Trials work in folders of their own, where a relative path would name another database.
        recipe = replace(recipe, tracking=replace(recipe.tracking, uri=handle.tracking_uri))
    setting = Setting(
        sweep=replace(sweep, recipe=recipe),
        parent_run_id=handle.run_id,
        resume_command=_resume_command(),
    )
    file_system, path = storage.resolve(folder)
    # Tune's own lines are about its processes; ours are about the trials.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Tune counts the reports of a trial that goes on from one again.
    warnings.filterwarnings("ignore", message="The reported value is ignored", module="optuna")
    at_once = trials_at_once(sweep)
    if resume and tune.Tuner.can_restore(path, storage_filesystem=file_system):
        tuner = _restored(path, setting, file_system=file_system, at_once=at_once)
    else:
        tuner = _new(path, setting, file_system=file_system, at_once=at_once)
    grid = tuner.fit()
    state = tune.ExperimentAnalysis(path, storage_filesystem=file_system)
    ended = {str(trial) for trial in state.trials if trial.status in {"TERMINATED", "ERROR"}}
    if len(ended) < sweep.trials:
        raise KeyboardInterrupt
    return [_trial(sweep, handle, grid[index]) for index in range(len(grid))]


def _new(path: str, setting: Setting, *, file_system: Any, at_once: int) -> tune.Tuner:  # noqa: ANN401  pyarrow's
    sweep = setting.sweep

    def name_of(trial: Any) -> str:  # noqa: ANN401  Ray's
        return trial_name(sweep.recipe.name, int(trial.experiment_tag.partition("_")[0]))

    return tune.Tuner(
        trainable(setting),
        tune_config=tune.TuneConfig(
            search_alg=search(sweep),
            scheduler=Halving(sweep),
            num_samples=sweep.trials,
            max_concurrent_trials=at_once,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=sweep.recipe.name,
            storage_path=path.rpartition("/")[0],
            storage_filesystem=file_system,
            callbacks=[Progress(sweep)],
            verbose=0,
        ),
    )


def _restored(path: str, setting: Setting, *, file_system: Any, at_once: int) -> tune.Tuner:  # noqa: ANN401  pyarrow's
    state = tune.ExperimentAnalysis(path, storage_filesystem=file_system)
    ended = sum(trial.status in {"TERMINATED", "ERROR"} for trial in state.trials)
    begun = len(state.trials) - ended
    _log.info("going on: %d of %d trials have ended, %d begun", ended, setting.sweep.trials, begun)
    tuner = tune.Tuner.restore(
        path,
        trainable=trainable(setting),
        resume_unfinished=True,
        resume_errored=True,
        storage_filesystem=file_system,
    )
    # The cluster may be another one now, and Tune has no way to be told.
    inner: Any = tuner._local_tuner  # noqa: SLF001
    inner._tune_config.max_concurrent_trials = at_once  # noqa: SLF001
    return tuner


def _trial(sweep: Sweep, handle: RunHandle, result: Any) -> Trial:  # noqa: ANN401  Tune's Result
    last = result.metrics or {}
    folder = storage.join(sweep.recipe.storage, sweep.recipe.name, Path(result.path).name)
    # From the trial's own folder: Tune forgets what was reported before a resume.
    measured = evaluate_checkpoint.kept(folder).items()
    history = {step: metrics[sweep.metric] for step, metrics in measured if sweep.metric in metrics}
    steps = sweep.recipe.optim.steps
    if last.get("step") == steps:
        history[steps] = last[sweep.metric]
    return Trial(
        number=number_of(Path(result.path).name),
        values={field: result.config[field] for field in sweep.fields},
        state="failed" if result.error else "finished" if steps in history else "stopped",
        history=history,
        run_id=runs.run_id_of(folder, handle.tracking_uri),
        reason=_reason(result.error) if result.error else "",
    )


def _reason(error: Exception) -> str:
    """Give the line of a trial's traceback that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error: " in line.partition(" ")[0] + " "]
    line = (telling or lines or [type(error).__name__])[-1][:500]
    # pipeline.errors.TrainingError: users read TrainingError everywhere else.
    kind, colon, text = line.partition(": ")
    return f"{kind.rpartition('.')[2]}{colon}{text}"


def _keep(sweep: Sweep, handle: RunHandle, folder: str, trials: list[Trial]) -> dict[str, Any]:
    """Write what came of it, here and in MLflow."""
    _log.info("\n%s", as_table(sweep, trials))
    for trial in trials:
        if trial.reason:
            _log.info("trial %d failed: %s", trial.number, trial.reason)
    storage.write_bytes_atomic(storage.join(folder, "trials.csv"), as_csv(sweep, trials).encode())
    best = winner(trials)
    if best is None:
        raise TrainingError(
            f"none of the {len(trials)} trials of {sweep.recipe.name} finished; why is above, "
            f"and in {folder}/trials.csv. When that is mended, go on with: {_resume_command()}"
        )
    mattered = importance(sweep, trials)
    recipe = replace(applied(sweep.recipe, best.values), name=f"{sweep.recipe.name}-winner")
    kept = {
        "trials.csv": as_csv(sweep, trials).encode(),
        "winner.json": to_json(recipe).encode(),
        "sweep.png": picture(sweep, kernel_curve(sweep, trials), mattered),
    }
    with tempfile.TemporaryDirectory(prefix="sweep-") as local:
        for name, data in kept.items():
            storage.write_bytes_atomic(storage.join(folder, name), data)
            Path(local, name).write_bytes(data)
        runs.log_artifacts(handle, local)
    counts = {
        f"trials_{state}": sum(trial.state == state for trial in trials)
        for state in ("finished", "stopped", "failed")
    }
    shares = {f"importance.{name}": share for name, share in mattered.shares.items()}
    runs.log_metrics(handle, counts | shares | {sweep.metric: best.value, "winner": best.number})
    best_run = storage.join(folder, trial_name(sweep.recipe.name, best.number))
    _say_end(sweep, folder, best, mattered, best_run=best_run)
    return {
        "name": sweep.recipe.name,
        "trials": len(trials),
        **counts,
        "winner": best.number,
        sweep.metric: best.value if math.isfinite(best.value) else None,
        "values": best.values,
        "importance": {name: round(share, 4) for name, share in mattered.shares.items()},
        "winner_run": best_run,
        **{name.replace(".", "_"): storage.join(folder, name) for name in kept},
        "run_id": handle.run_id,
        "tracking": handle.url,
    }


def _say_end(
    sweep: Sweep, folder: str, best: Trial, mattered: Importance, *, best_run: str
) -> None:
    shares = "  ".join(f"{short(field)} {share:.2f}" for field, share in mattered.shares.items())
    if shares:
        shares += f"  (guessed from {mattered.trials} trials at step {mattered.step})"
    facts = [
        ("winner", f"trial {best.number}, {sweep.metric} {best.value:.4f}: {shown(best.values)}"),
        ("mattered", shares or "the trials are too few, or too much alike, to say"),
        ("picture", storage.join(folder, "sweep.png")),
        ("train it", f"python jobs/train.py {storage.join(folder, 'winner.json')}"),
        ("register it", f"python jobs/models.py register {best_run} --name NAME"),
    ]
    _log.info("%s", header(facts))
