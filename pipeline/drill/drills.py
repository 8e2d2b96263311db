"""Run drills, and print what each fault did."""

import inspect
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from pipeline.drill import cluster_faults, file_faults, memory_faults, process_faults, store_faults
from pipeline.drill.comparison import References, compare_samples, has_same_weights
from pipeline.drill.scene import LONG_IMAGES, Outcome, Scene, write_shards
from pipeline.errors import DrillError, DrillSkippedError, RecipeError
from pipeline.text import format_table, suggest

_log = logging.getLogger(__name__)

_SEEN = 100
"""Characters of what the user saw in the table; the log has all of it."""

WELL, LOST = "nothing lost", "LOST"

Fault = Callable[[Scene], Outcome]

FAULTS: Mapping[str, Fault] = {
    "sigterm": process_faults.terminate,
    "driver-killed": process_faults.kill_driver,
    "two-jobs": process_faults.start_twice,
    "clock": process_faults.skew_clock,
    "checkpoint-truncated": file_faults.truncate_checkpoint,
    "checkpoint-byte": file_faults.flip_checkpoint_byte,
    "shard-deleted": file_faults.delete_shard,
    "shard-truncated": file_faults.truncate_shard,
    "shard-deleted-later": file_faults.delete_shard_while_read,
    "shard-truncated-later": file_faults.truncate_shard_while_read,
    "disk-full": file_faults.fill_disk,
    "temporary-disk-full": file_faults.fill_temporary_disk,
    "loss-infinite": process_faults.make_loss_infinite,
    "store-slow": store_faults.slow_store,
    "store-503": store_faults.unavailable_store,
    "store-gone": store_faults.lose_store,
    "store-credentials": store_faults.expire_credentials,
    "mlflow-gone": store_faults.lose_tracking,
    "mlflow-away": store_faults.interrupt_tracking,
    "worker-killed": cluster_faults.kill_worker,
    "worker-pauses": cluster_faults.pause_worker,
    "worker-hangs": cluster_faults.hang_worker,
    "worker-slow": cluster_faults.slow_worker,
    "worker-memory": memory_faults.exhaust_worker_memory,
    "data-memory": memory_faults.exhaust_data_memory,
    "sigterm-to-all": cluster_faults.terminate_group,
    "node-lost": cluster_faults.lose_node,
    "node-disk-full": cluster_faults.fill_node_disk,
    "fewer-nodes": cluster_faults.shrink_cluster,
    "head-lost": cluster_faults.lose_head,
    "job-stopped": cluster_faults.stop_job,
}
"""Faults by name; each docstring says what the run must do."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result of a drill."""

    fault: str
    verdict: str
    """WELL, LOST or "skipped"."""
    saw: str
    """The line that tells the user, or what was lost."""
    seconds_lost: float | None = None
    samples_lost: int | None = None
    samples_repeated: int | None = None
    seconds: float = 0.0
    """Of the whole drill, with all starts."""


def drill(names: Positional[tuple[str, ...]] = (), *, folder: str = "") -> dict[str, Any]:
    """Inject faults into small training runs, and check that nothing is lost.

    Args:
        names: the faults to inject; all by default.
        folder: new folder that keeps the runs; by default a temporary one, which is deleted.

    Raises:
        RecipeError: there is no such fault, or the folder is not empty.
        DrillError: a fault lost something.
    """
    if problems := [
        f"unknown fault {each}{suggest(each, FAULTS)}" for each in names if each not in FAULTS
    ]:
        raise RecipeError("\n".join([*problems, f"known are: {', '.join(FAULTS)}"]))
    check_is_new(folder)
    # As Ctrl-C: jobs, servers and disks of a drill end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="drill-") as temporary:
        return _drill(names or tuple(FAULTS), Path(folder or temporary).absolute())


def check_is_new(folder: str) -> None:
    """Check that a folder has no runs of another drill.

    Raises:
        RecipeError: it is not empty.
    """
    if folder and Path(folder).is_dir() and any(Path(folder).iterdir()):
        raise RecipeError(f"--folder {folder}: is not empty; a drill needs runs of its own")


def _drill(names: Sequence[str], folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    scene = Scene(
        name="calm",
        folder=folder / "calm",
        shards=write_shards(folder),
        long_shards=write_shards(folder / "long", train_images=LONG_IMAGES),
        environment=environment,
    )
    references = References(scene)
    rows = []
    for number, name in enumerate(names, start=1):
        does = (inspect.getdoc(FAULTS[name]) or "").splitlines()[0]
        _log.info("drill %d of %d: %s. The run must: %s", number, len(names), name, does)
        place = replace(scene, name=name, folder=folder / name)
        rows.append(_run(place, FAULTS[name], references.find))
        row = rows[-1]
        _log.info("%s after %.0f s; the user saw: %s", row.verdict, row.seconds, row.saw)
    _log.info("\n%s", "\n".join(_format(rows)))
    lost = [row.fault for row in rows if row.verdict == LOST]
    if lost:
        raise DrillError(f"{len(lost)} of {len(rows)} faults lost something: {', '.join(lost)}")
    return {"faults": len(rows), "rows": [asdict(row) for row in rows]}


def _run(scene: Scene, fault: Fault, find_reference: Callable[[Outcome], Mapping[str, Any]]) -> Row:
    started_s = time.monotonic()
    lost = repeated = seconds = None
    outcome = None
    try:
        outcome = fault(scene)
        seconds = time.monotonic() - started_s
        expected = find_reference(outcome)
        lost, repeated = compare_samples(outcome.result, expected)
        verdict, saw = _judge(outcome, expected, lost=lost, repeated=repeated)
    except DrillSkippedError as error:
        verdict, saw = "skipped", str(error)
    except DrillError as error:
        verdict, saw = LOST, str(error)
    except Exception as error:  # one drill that breaks must not take the table of the others
        _log.exception("%s: the drill itself failed", scene.name)
        verdict, saw = LOST, f"the drill itself failed: {type(error).__name__}: {error}"
    return Row(
        fault=scene.name,
        verdict=verdict,
        saw=saw,
        seconds_lost=outcome.seconds_lost if outcome else None,
        samples_lost=lost,
        samples_repeated=repeated,
        seconds=time.monotonic() - started_s if seconds is None else seconds,
    )


def _judge(
    outcome: Outcome, expected: Mapping[str, Any], *, lost: int, repeated: int
) -> tuple[str, str]:
    """Return the verdict, and what the user saw or what was lost."""
    if lost or repeated:
        return LOST, f"{lost} samples were lost and {repeated} repeated"
    if outcome.workers is not None and not has_same_weights(outcome.result, expected):
        return LOST, "the weights differ from those of the run without a fault"
    return WELL, outcome.saw


def _format(rows: Sequence[Row]) -> list[str]:
    cells = [("fault", "verdict", "s lost", "samples lost", "repeated", "what the user sees")]
    for row in rows:
        numbers = (
            "-" if row.seconds_lost is None else f"{row.seconds_lost:.0f}",
            "-" if row.samples_lost is None else str(row.samples_lost),
            "-" if row.samples_repeated is None else str(row.samples_repeated),
        )
        cells.append((row.fault, row.verdict, *numbers, row.saw.splitlines()[0][:_SEEN]))
    return format_table(cells)
