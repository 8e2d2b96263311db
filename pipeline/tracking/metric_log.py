"""Send step metrics to the tracking store without ever blocking training.

    log = MetricLog(handle.tracking_uri, handle.run_id, handle.spool_uri)   # rank 0
    log.log(120, {"loss": 1.2})
    left = log.close(timeout_s=10)

A background thread writes every point to a spool file, then sends the content of the file in order.
While the store is unreachable the file grows and the thread retries with increasing pauses. Points
left when the process ends or is killed are sent by `deliver_spools` in the driver. Nothing here
raises: a metric must not end a training run.

With the embedded store, workers that see the SQLite file write to it; others only spool.
"""

import logging
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.tracking.spool import SUFFIX, Point, Spool, create_spool, parse_line
from pipeline.tracking.stores import create_client, redact, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

# MLflow accepts at most 1000 metrics per batch; a step has about ten.
_POINTS_PER_READ = 200
_METRICS_PER_BATCH = 1000
_LONGEST_PAUSE_S = 60.0
_UPLOAD_EVERY_S = 60.0


class MetricLog:
    """Queues, spools and sends the metrics of one process.

    Args:
        tracking_uri: the full URI, from RunHandle.
        run_id: the MLflow run.
        spool_uri: folder of the spool files. In an object store, the local spool is copied there
            while the tracking store is unreachable.
        pause_s: seconds between two passes of the background thread.
    """

    def __init__(
        self, tracking_uri: str, run_id: str, spool_uri: str, *, pause_s: float = 1.0
    ) -> None:
        self._sender = _Sender(tracking_uri, run_id)
        self._spool_uri = spool_uri
        local = storage.is_local(spool_uri)
        folder = Path(storage.absolute(spool_uri) if local else tempfile.mkdtemp(prefix="spool-"))
        self._spool = create_spool(folder, run_id=run_id, time_ms=_now_ms())
        self._copy_uri = "" if local else storage.join(spool_uri, self._spool.path.name)
        self._copied_at = float("-inf")
        self._queue: queue.SimpleQueue[Point] = queue.SimpleQueue()
        self._unwritten: list[Point] = []
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._pause_s = pause_s
        self._thread = threading.Thread(target=self._run, name="metric-log", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the metrics of a step; never blocks."""
        self._queue.put(Point(_now_ms(), step, dict(values)))

    def persist(self) -> None:
        """Write all points to storage that outlives this machine; for use before a checkpoint.

        A resumed run repeats, and logs again, only the steps after its last checkpoint.
        """
        try:
            self._to_disk()
            if self._copy_uri and self._spool.count_pending():
                self._copy(force=True)
        except (OSError, StorageError) as error:
            _log.warning("event=spool_copy_failed reason=%r", redact(str(error)))

    def close(self, *, timeout_s: float = 15.0) -> int:
        """Send the remaining points.

        Args:
            timeout_s: when to give up.

        Returns:
            Number of points left on disk for `deliver_spools`.
        """
        self._closing.set()
        self._thread.join(timeout_s)
        left = 0
        try:
            self._to_disk()
            left = self._spool.count_pending()
            if left:
                self._copy(force=True)
                _log.warning(
                    "event=metrics_wait points=%d file=%s reason='the tracking store did not "
                    "accept them; they are sent when the run ends or is restarted'",
                    left,
                    self._copy_uri or self._spool.path,
                )
            elif not self._thread.is_alive():
                self._spool.remove()
                if self._copy_uri and self._copied_at > 0:
                    storage.remove(self._copy_uri)
        except (OSError, StorageError) as error:
            _log.warning("event=spool_failed reason=%r", redact(str(error)))
        return left + len(self._unwritten)

    def _run(self) -> None:
        pause_s, try_at = self._pause_s, 0.0
        closing = False
        while not closing:
            closing = self._closing.wait(self._pause_s)
            try:
                self._to_disk()
                if closing or time.monotonic() >= try_at:
                    pause_s = self._pause_s
                    deliver(self._spool, self._sender.send)
            except Exception as error:
                self._sender.report_outage(error)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                try_at = time.monotonic() + pause_s
                self._copy_quietly()

    def _to_disk(self) -> None:
        # Called by close() and by the thread; the lock keeps the points in order.
        with self._writing:
            while True:
                try:
                    self._unwritten += _to_floats(self._queue.get_nowait())
                except queue.Empty:
                    break
            if self._unwritten:
                self._spool.append(self._unwritten)
                self._unwritten = []

    def _copy_quietly(self) -> None:
        try:
            self._copy(force=False)
        except (OSError, StorageError) as error:
            _log.warning("event=spool_copy_failed reason=%r", redact(str(error)))

    def _copy(self, *, force: bool) -> None:
        now = time.monotonic()
        if self._copy_uri and (force or now - self._copied_at > _UPLOAD_EVERY_S):
            storage.write_bytes_atomic(self._copy_uri, self._spool.path.read_bytes())
            self._copied_at = now


class _Sender:
    """Sends points to one run, except for steps that the run already has.

    After a crash a run repeats, and logs again, the steps since its last checkpoint.
    """

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self._uri = tracking_uri
        self._run_id = run_id
        self._known: dict[str, set[int]] = {}
        self._is_away = False

    def send(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415  mlflow is slow to import
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        if (path := sqlite_path(self._uri)) is not None and not path.exists():
            raise FileNotFoundError(f"{path} is not on this machine")
        store = create_client(self._uri)
        metrics = [
            Metric(name, value, point.time_ms, point.step)
            for point in points
            for name, value in point.values.items()
            if point.step not in self._sent_steps(store, name)
        ]
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            batch = metrics[start : start + _METRICS_PER_BATCH]
            try:
                store.log_batch(self._run_id, metrics=batch)
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                # Retrying would be refused forever and would block all later points.
                _log.warning("event=metrics_refused reason=%r", redact(str(error))[:300])
        for metric in metrics:
            self._known[metric.key].add(metric.step)
        if self._is_away:
            self._is_away = False
            _log.warning("event=tracking_is_back sent=%d", len(points))

    def report_outage(self, error: Exception) -> None:
        if not self._is_away:
            self._is_away = True
            _log.warning(
                "event=tracking_is_away store=%s reason=%r action='training continues, metrics "
                "wait on disk'",
                redact(self._uri),
                redact(str(error))[:200],
            )

    def _sent_steps(self, store: "MlflowClient", name: str) -> set[int]:
        if name not in self._known:
            history = store.get_metric_history(self._run_id, name)
            self._known[name] = {metric.step for metric in history}
        return self._known[name]


def deliver(spool: Spool, send: Callable[[Sequence[Point]], None]) -> None:
    """Send the points of a spool in order; when `send` raises, the rest stays in the spool."""
    while True:
        points, offset = spool.read_pending(max_points=_POINTS_PER_READ)
        if not points:
            return
        send(points)
        spool.save_offset(offset)


def deliver_spools(tracking_uri: str, run_id: str, spool_uri: str) -> int:
    """Send the points that earlier processes of a run left in their spools.

    For the driver, while no worker runs. Never raises.

    Returns:
        Number of points that could not be sent.
    """
    sender = _Sender(tracking_uri, run_id)
    left = 0
    try:
        for uri in storage.list_files(spool_uri, suffix=SUFFIX):
            if uri.rpartition("/")[2].startswith(run_id):
                left += _send_file(uri, sender)
    except (OSError, StorageError) as error:
        _log.warning("event=spool_unreadable reason=%r", redact(str(error)))
    return left


def _send_file(uri: str, sender: _Sender) -> int:
    local = storage.is_local(uri)
    spool = Spool(Path(uri)) if local else None
    points = [] if local else _parse_points(storage.read_bytes(uri))
    try:
        if spool:
            deliver(spool, sender.send)
            spool.remove()
        else:
            sender.send(points)
            storage.remove(uri)
    except Exception as error:
        sender.report_outage(error)
        return spool.count_pending() if spool else len(points)
    return 0


def _parse_points(data: bytes) -> list[Point]:
    return [point for line in data.splitlines() for point in parse_line(line)]


def _to_floats(point: Point) -> list[Point]:
    try:
        return [point._replace(values={k: float(v) for k, v in point.values.items()})]
    except (TypeError, ValueError) as error:
        _log.warning("event=metric_is_no_number step=%s reason=%r", point.step, str(error))
        return []


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
