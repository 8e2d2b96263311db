"""A whole sweep: check, search, and save the results as files and in MLflow.

STORAGE/NAME holds the declared sweep (sweep.json), Ray Tune's state, and at the end trials.csv,
sweep.png and winner.json, the recipe of the best trial. The trials are runs in the same folder,
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
from pipeline.evaluation.checkpoint_metrics import load_metrics
from pipeline.recipe import rename_old_fields, to_json
from pipeline.recipe_json import leaves, to_plain
from pipeline.run_report.page import REPORT_FILE
from pipeline.text import format_count, format_table
from pipeline.tracking import runs
from pipeline.tracking.runs import RunHandle
from pipeline.tracking.stores import format_error, redact, sqlite_path
from pipeline.training.capacity import check_cluster, start_ray
from pipeline.training.preflight import prepare_run, resolve_paths
from pipeline.training.run_header import resume_command
from pipeline.training.run_lock import hold_run
from pipeline.training.stop import StopRequest
from pipeline.tuning import results
from pipeline.tuning.concurrency import count_concurrent_trials
from pipeline.tuning.plot import plot_sweep
from pipeline.tuning.results import Importance, TrialResult
from pipeline.tuning.search import SweepScheduler, build_searcher
from pipeline.tuning.space import Sweep, apply_values, format_values, short_name, trial_name
from pipeline.tuning.sweep_report import DECLARED, write_sweep_report
from pipeline.tuning.trial import TrialContext, build_trainable, parse_trial_number
from pipeline.tuning.trial_progress import TrialProgress

__all__ = ["run_sweep"]

_log = logging.getLogger(__name__)

_FREE = ("parallel", "recipe.scale.", "recipe.tracking.", "recipe.storage")
"""Fields that do not change the result of a trial; a resume may change them."""


def run_sweep(sweep: Sweep, *, resume: bool) -> dict[str, Any]:
    """Run a sweep to its end.

    Args:
        sweep: the recipe and the search space.
        resume: resume the sweep of this name.

    Returns:
        The RESULT line: name, counts of trials, the winner's number, values and metric, the
        importance of each value, and the paths of all outputs.

    Raises:
        PipelineError: data, recipe or sweep have problems, before anything starts; or no trial
            finished.
        KeyboardInterrupt: the sweep was stopped before its last trial.
    """
    folder = storage.absolute(storage.join(sweep.recipe.storage, sweep.recipe.name))
    stop = StopRequest(_resume_command())
    with stop.catch_sigterm(), hold_run(folder):
        return _run_sweep(sweep, folder, resume=resume, stop=stop)


def _run_sweep(sweep: Sweep, folder: str, *, resume: bool, stop: StopRequest) -> dict[str, Any]:
    is_declared = _check_declaration(sweep, folder, resume=resume)
    check_cluster(sweep.recipe)
    prepare_run(sweep.recipe)
    data = read_manifest(storage.join(sweep.recipe.data.root, sweep.recipe.data.train_split))
    handle = runs.open_run(sweep.recipe, data_fingerprint=data.fingerprint)
    start_ray(sweep.recipe)
    stop.install()
    if not is_declared:
        declared = json.dumps(to_plain(sweep), indent=1)
        storage.write_bytes_atomic(storage.join(folder, DECLARED), declared.encode())
    _log_rows(_header_rows(sweep, handle, folder))
    try:
        trials = _search(sweep, handle, folder, resume=resume)
        result = _save_results(sweep, handle, folder, trials)
    except KeyboardInterrupt:
        runs.finish(handle, "KILLED")
        raise
    except BaseException:
        runs.finish(handle, "FAILED")
        raise
    runs.finish(handle)
    return result


def _check_declaration(sweep: Sweep, folder: str, *, resume: bool) -> bool:
    """Refuse to resume a changed sweep or to overwrite another; return whether it was declared."""
    uri, name = storage.join(folder, DECLARED), sweep.recipe.name
    is_declared = storage.exists(uri)
    if not is_declared and resume:
        raise RecipeError(
            f"there is no sweep {name} in {sweep.recipe.storage} to resume; start it without "
            "--resume, or find it with --storage and --name"
        )
    if is_declared and not resume:
        raise RecipeError(
            f"sweep {name} already exists in {sweep.recipe.storage}. Resume it with: --resume. Or "
            f"start a new one with: --name {name}-2"
        )
    if not is_declared:
        return False
    declared = json.loads(storage.read_bytes(uri))
    rename_old_fields(declared["recipe"])
    before, now = leaves(declared), leaves(to_plain(sweep))
    changed = [
        f"  {field}: {json.dumps(before.get(field))} -> {json.dumps(now.get(field))}"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field) and not field.startswith(_FREE)
    ]
    if changed:
        raise RecipeError(
            f"sweep {name} in {sweep.recipe.storage} was started with other values:\n"
            + "\n".join(changed)
            + "\nA sweep can only resume with the same values. Use those on the left, or start a "
            f"new sweep with: --name {name}-2"
        )
    return True


def _log_rows(rows: list[tuple[str, str]]) -> None:
    _log.info("%s", "\n".join(format_table(rows)))


def _header_rows(sweep: Sweep, handle: RunHandle, folder: str) -> list[tuple[str, str]]:
    recipe = sweep.recipe
    ranges = ", ".join(f"{short_name(r.field)} {r.low:g} to {r.high:g}" for r in sweep.ranges)
    trials = format_count(sweep.trials, "trial")
    workers = format_count(recipe.scale.num_workers, "worker")
    return [
        ("sweep", f"{recipe.name}: {trials}, the best {sweep.metric} wins"),
        ("space", f"kernel_size {', '.join(map(str, sweep.kernel_sizes))}; {ranges}"),
        (
            "trial",
            f"{format_count(recipe.optim.steps, 'step')} of "
            f"{format_count(recipe.optim.global_batch, 'image')} on {workers}, evaluated every "
            f"{format_count(recipe.checkpoint.every_steps, 'step')}",
        ),
        ("shards", f"{storage.absolute(recipe.data.root)}, the same for every trial"),
        ("results", folder),
        ("tracking", handle.url),
        ("resume", _resume_command()),
    ]


def _resume_command() -> str:
    command = resume_command()
    return command if "--resume" in command else f"{command} --resume"


def _search(sweep: Sweep, handle: RunHandle, folder: str, *, resume: bool) -> list[TrialResult]:
    recipe = resolve_paths(sweep.recipe)
    if sqlite_path(handle.tracking_uri) is not None:
        # Trials have their own working directories, where a relative path is another database.
        recipe = replace(recipe, tracking=replace(recipe.tracking, uri=handle.tracking_uri))
    context = TrialContext(
        sweep=replace(sweep, recipe=recipe),
        parent_run_id=handle.run_id,
        resume_command=_resume_command(),
    )
    # Tune logs its processes; we log the trials.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A resumed trial reports some steps a second time.
    warnings.filterwarnings("ignore", message="The reported value is ignored", module="optuna")
    file_system, path = storage.resolve(folder)
    can_restore = resume and tune.Tuner.can_restore(path, storage_filesystem=file_system)
    grid = (_restore_tuner if can_restore else _create_tuner)(folder, context).fit()
    if _count_trials(folder)[0] < sweep.trials:
        raise KeyboardInterrupt
    return [_to_trial_result(sweep, handle, grid[index]) for index in range(len(grid))]


def _count_trials(folder: str) -> tuple[int, int]:
    """Return how many trials have ended, and how many have started."""
    file_system, path = storage.resolve(folder)
    trials = tune.ExperimentAnalysis(path, storage_filesystem=file_system).trials
    # With these, Tune does not run a trial again.
    ended = {str(trial) for trial in trials if trial.status in {"TERMINATED", "ERROR"}}
    return len(ended), len(trials)


def _create_tuner(folder: str, context: TrialContext) -> tune.Tuner:
    sweep = context.sweep
    file_system, path = storage.resolve(folder)

    def name_trial(trial: Any) -> str:  # noqa: ANN401  Ray's
        return trial_name(sweep.recipe.name, int(trial.experiment_tag.partition("_")[0]))

    return tune.Tuner(
        build_trainable(context),
        tune_config=tune.TuneConfig(
            search_alg=build_searcher(sweep),
            scheduler=SweepScheduler(sweep),
            num_samples=sweep.trials,
            max_concurrent_trials=count_concurrent_trials(sweep),
            trial_name_creator=name_trial,
            trial_dirname_creator=name_trial,
        ),
        run_config=tune.RunConfig(
            name=sweep.recipe.name,
            storage_path=path.rpartition("/")[0],
            storage_filesystem=file_system,
            callbacks=[TrialProgress(sweep)],
            verbose=0,
        ),
    )


def _restore_tuner(folder: str, context: TrialContext) -> tune.Tuner:
    ended, started = _count_trials(folder)
    total = context.sweep.trials
    _log.info("resuming: %d of %d trials ended, %d unfinished", ended, total, started - ended)
    file_system, path = storage.resolve(folder)
    tuner = tune.Tuner.restore(
        path,
        trainable=build_trainable(context),
        resume_unfinished=True,
        resume_errored=True,
        storage_filesystem=file_system,
    )
    # The cluster may have another size now, and Tuner.restore has no argument for this.
    inner: Any = tuner._local_tuner  # noqa: SLF001
    concurrent = count_concurrent_trials(context.sweep)
    inner._tune_config.max_concurrent_trials = concurrent  # noqa: SLF001
    return tuner


def _to_trial_result(sweep: Sweep, handle: RunHandle, result: Any) -> TrialResult:  # noqa: ANN401  Tune's Result
    last = result.metrics or {}
    folder = storage.join(sweep.recipe.storage, sweep.recipe.name, Path(result.path).name)
    # Read from the trial's folder: Tune forgets the reports from before a resume.
    saved = load_metrics(folder).items()
    history = {step: metrics[sweep.metric] for step, metrics in saved if sweep.metric in metrics}
    steps = sweep.recipe.optim.steps
    if last.get("step") == steps:
        history[steps] = last[sweep.metric]
    return TrialResult(
        number=parse_trial_number(Path(result.path).name),
        values={field: result.config[field] for field in sweep.fields},
        state="failed" if result.error else "finished" if steps in history else "stopped",
        history=history,
        run_id=runs.read_run_id(folder, handle.tracking_uri),
        reason=_extract_reason(result.error) if result.error else "",
    )


def _extract_reason(error: Exception) -> str:
    """Return the line of a traceback that names the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    with_error = [line for line in lines if "Error: " in line.partition(" ")[0] + " "]
    line = (with_error or lines or [type(error).__name__])[-1][:500]
    # Other messages name TrainingError without its module.
    kind, colon, text = line.partition(": ")
    return f"{kind.rpartition('.')[2]}{colon}{text}"


def _save_results(
    sweep: Sweep, handle: RunHandle, folder: str, trials: list[TrialResult]
) -> dict[str, Any]:
    """Save the results in the sweep's folder and in MLflow."""
    _log.info("\n%s", results.format_trials_table(sweep, trials))
    for trial in trials:
        if trial.reason:
            _log.info("trial %d failed: %s", trial.number, trial.reason)
    trials_csv = results.format_trials_csv(sweep, trials).encode()
    storage.write_bytes_atomic(storage.join(folder, "trials.csv"), trials_csv)
    best = results.find_winner(trials)
    if best is None:
        raise TrainingError(
            f"none of the {format_count(len(trials), 'trial')} of {sweep.recipe.name} finished; "
            f"the reasons are above and in {folder}/trials.csv. After fixing them, resume with: "
            f"{_resume_command()}"
        )
    importance = results.estimate_importance(sweep, trials)
    recipe = replace(apply_values(sweep.recipe, best.values), name=f"{sweep.recipe.name}-winner")
    files = {
        "trials.csv": trials_csv,
        "winner.json": to_json(recipe).encode(),
        "sweep.png": plot_sweep(sweep, results.build_kernel_curve(sweep, trials), importance),
    }
    report = _write_report(sweep, folder, trials)
    with tempfile.TemporaryDirectory(prefix="sweep-") as local:
        for name, data in files.items():
            storage.write_bytes_atomic(storage.join(folder, name), data)
            Path(local, name).write_bytes(data)
        if report:
            Path(local, REPORT_FILE).write_bytes(storage.read_bytes(report))
        runs.log_artifacts(handle, local)
    counts = {
        f"trials_{state}": sum(trial.state == state for trial in trials)
        for state in ("finished", "stopped", "failed")
    }
    shares = {f"importance.{name}": share for name, share in importance.shares.items()}
    runs.log_metrics(handle, counts | shares | {sweep.metric: best.value, "winner": best.number})
    best_run = storage.join(folder, trial_name(sweep.recipe.name, best.number))
    _log_rows(_result_rows(sweep, folder, best, importance, best_run=best_run))
    return {
        "name": sweep.recipe.name,
        "trials": len(trials),
        **counts,
        "winner": best.number,
        sweep.metric: best.value if math.isfinite(best.value) else None,
        "values": best.values,
        "importance": {name: round(share, 4) for name, share in importance.shares.items()},
        "winner_run": best_run,
        **{name.replace(".", "_"): storage.join(folder, name) for name in files},
        "report": report,
        "run_id": handle.run_id,
        "tracking": handle.url,
    }


def _write_report(sweep: Sweep, folder: str, trials: list[TrialResult]) -> str:
    """Write the report of a sweep; "" if it cannot be written, which loses nothing else."""
    try:
        return write_sweep_report(sweep, trials, folder=folder)
    except Exception as error:
        reason = redact(format_error(error))
        _log.warning("report: not written: %s. To try again: bsm report %s", reason, folder)
        return ""


def _result_rows(
    sweep: Sweep, folder: str, best: TrialResult, importance: Importance, *, best_run: str
) -> list[tuple[str, str]]:
    shares = "  ".join(
        f"{short_name(field)} {share:.2f}" for field, share in importance.shares.items()
    )
    if shares:
        shares += f"  (estimated from {importance.trials} trials at step {importance.step})"
    values = format_values(best.values)
    return [
        ("winner", f"trial {best.number}, {sweep.metric} {best.value:.4f}: {values}"),
        ("importance", shares or "too few different trials to estimate it"),
        ("plot", storage.join(folder, "sweep.png")),
        ("report", storage.join(folder, REPORT_FILE)),
        ("train it", f"python jobs/train.py {storage.join(folder, 'winner.json')}"),
        ("register it", f"python jobs/models.py register {best_run} --name NAME"),
    ]
