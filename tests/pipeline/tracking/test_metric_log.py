"""No point is lost, duplicated or out of order, and no step waits for a server."""

import time

import pytest

from pipeline.tracking import metric_log
from pipeline.tracking.metric_log import MetricLog, deliver_spools
from pipeline.tracking.spool import Point, Spool

HTTP = "http://tracking.invalid"


class FakeStore:
    """Fakes an MLflow client whose server can be unreachable or fail during a call."""

    def __init__(self):
        self.metrics = []
        self.is_down = False
        self.apply_then_fail = 0
        self.seconds_per_call = 0.0

    def get_metric_history(self, run_id, name):
        self._respond()
        return [m for m in self.metrics if m.key == name]

    def log_batch(self, run_id, *, metrics):
        self._respond()
        assert len(metrics) <= 1000, "MLflow refuses larger batches"
        # Like MLflow, store equal points once.
        seen = {(m.key, m.timestamp, m.step) for m in self.metrics}
        self.metrics += [m for m in metrics if (m.key, m.timestamp, m.step) not in seen]
        if self.apply_then_fail:
            self.apply_then_fail -= 1
            raise ConnectionError("the response was lost")

    def steps(self, name="loss"):
        return [m.step for m in self.metrics if m.key == name]

    def _respond(self):
        time.sleep(self.seconds_per_call)
        if self.is_down:
            raise ConnectionError("connection refused")


@pytest.fixture
def store(monkeypatch):
    fake = FakeStore()
    monkeypatch.setattr(metric_log, "create_client", lambda uri: fake)
    return fake


@pytest.fixture
def lost_log():
    """Open logs as if their process were killed: the thread never runs, and nobody closes them.

    They are closed after the test, so that no thread runs during a later one.
    """
    logs = []

    def open_lost(spool_uri):
        logs.append(MetricLog(HTTP, "run1", spool_uri, pause_s=60))
        return logs[-1]

    yield open_lost
    for log in logs:
        log.close()


def wait_until(holds, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def open_log(tmp_path):
    return MetricLog(HTTP, "run1", str(tmp_path), pause_s=0.02)


def test_all_points_arrive_and_no_file_is_left(store, tmp_path):
    log = open_log(tmp_path)
    for step in range(2500):
        log.log(step, {"loss": 1.0 / (step + 1), "lr": 0.1})
    assert log.close() == 0
    assert store.steps() == list(range(2500))
    assert store.steps("lr") == list(range(2500))
    assert list(tmp_path.iterdir()) == []


def test_points_wait_on_disk_and_arrive_in_order_after_an_outage(store, tmp_path):
    log = open_log(tmp_path)
    log.log(0, {"loss": 1.0})
    wait_until(lambda: store.steps() == [0])
    store.is_down = True
    for step in range(1, 50):
        log.log(step, {"loss": 1.0})
    spool = Spool(next(tmp_path.glob("*.jsonl")))
    wait_until(lambda: spool.count_pending() == 49)
    store.is_down = False
    log.log(50, {"loss": 1.0})
    assert log.close() == 0
    assert store.steps() == list(range(51))


def test_points_left_at_close_are_sent_by_the_driver(store, tmp_path):
    store.is_down = True
    log = open_log(tmp_path)
    for step in range(30):
        log.log(step, {"loss": 1.0})
    assert log.close(timeout_s=5) == 30
    assert deliver_spools(HTTP, "run1", str(tmp_path)) == 30
    store.is_down = False
    assert deliver_spools(HTTP, "another_run", str(tmp_path)) == 0
    assert store.steps() == []
    assert deliver_spools(HTTP, "run1", str(tmp_path)) == 0
    assert store.steps() == list(range(30))
    assert list(tmp_path.iterdir()) == []


def test_points_before_a_checkpoint_survive_a_kill(store, tmp_path, lost_log):
    """A resumed run never logs the points before its checkpoint again."""
    log = lost_log(str(tmp_path))
    log.log(1, {"loss": 1.0})
    log.persist()
    assert store.steps() == []
    assert deliver_spools(HTTP, "run1", str(tmp_path)) == 0
    assert store.steps() == [1]


def test_a_lost_response_and_repeated_steps_duplicate_nothing(store, tmp_path):
    store.apply_then_fail = 1
    first = open_log(tmp_path)
    for step in range(20):
        first.log(step, {"loss": 1.0})
    assert first.close() in {0, 20}
    assert deliver_spools(HTTP, "run1", str(tmp_path)) == 0
    # The run crashed after step 19 and resumes from its checkpoint at step 12.
    second = open_log(tmp_path)
    for step in range(12, 25):
        second.log(step, {"loss": 2.0})
    assert second.close() == 0
    assert store.steps() == list(range(25))


def test_a_step_never_waits_for_a_slow_store(store, tmp_path):
    store.seconds_per_call = 20.0
    log = open_log(tmp_path)
    started = time.monotonic()
    for step in range(100):
        log.log(step, {"loss": 1.0})
    log_s = time.monotonic() - started
    left = log.close(timeout_s=0.2)
    close_s = time.monotonic() - started
    assert log_s < 8
    assert close_s < 10
    assert left == 100


def test_nothing_raises_when_disk_and_store_are_gone(store, tmp_path, monkeypatch, caplog):
    def full(self, points):
        raise OSError("No space left on device")

    monkeypatch.setattr(Spool, "append", full)
    store.is_down = True
    log = open_log(tmp_path)
    log.log(0, {"loss": 1.0})
    log.log(1, {"loss": "not a number"})
    assert log.close(timeout_s=5) == 1
    assert "No space left" in caplog.text
    assert "metric_is_no_number step=1" in caplog.text


def test_a_file_cut_off_by_a_crash_gives_all_its_whole_lines(store, tmp_path):
    spool = Spool(tmp_path / "run1-0-host-1.jsonl")
    spool.append([Point(1, step, {"loss": 1.0}) for step in range(3)])
    with spool.path.open("a") as stream:
        stream.write('[1, 3, {"lo')
    assert deliver_spools(HTTP, "run1", str(tmp_path)) == 0
    assert store.steps() == [0, 1, 2]


def test_an_sqlite_file_of_another_machine_is_not_created(tmp_path):
    database = tmp_path / "elsewhere" / "mlflow.db"
    log = MetricLog(f"sqlite:///{database}", "run1", str(tmp_path / "spool"), pause_s=0.02)
    log.log(0, {"loss": 1.0})
    assert log.close() == 1
    assert not database.parent.exists()


class FakeBucket:
    """Fakes an object store: whole objects only."""

    def __init__(self, monkeypatch):
        self.objects = {}
        monkeypatch.setattr(metric_log.storage, "is_local", lambda uri: "://" not in uri)
        monkeypatch.setattr(metric_log.storage, "write_bytes_atomic", self.objects.__setitem__)
        monkeypatch.setattr(metric_log.storage, "read_bytes", self.objects.__getitem__)
        monkeypatch.setattr(metric_log.storage, "remove", self._remove)
        monkeypatch.setattr(
            metric_log.storage,
            "list_files",
            lambda uri, *, suffix: sorted(k for k in self.objects if k.endswith(suffix)),
        )

    def _remove(self, uri):
        self.objects.pop(uri, None)


def test_points_of_a_worker_elsewhere_wait_in_the_object_store(store, monkeypatch):
    bucket = FakeBucket(monkeypatch)
    store.is_down = True
    log = MetricLog(HTTP, "run1", "s3://bucket/runs/r/spool", pause_s=0.02)
    log.log(0, {"loss": 1.0})
    # Copied while the worker runs, as its disk may be lost with its machine.
    wait_until(lambda: len(bucket.objects) == 1)
    for step in range(1, 10):
        log.log(step, {"loss": 1.0})
    assert log.close() == 10
    assert deliver_spools(HTTP, "run1", "s3://bucket/runs/r/spool") == 10
    store.is_down = False
    assert deliver_spools(HTTP, "run1", "s3://bucket/runs/r/spool") == 0
    assert store.steps() == list(range(10))
    assert bucket.objects == {}


def test_nothing_is_left_in_the_object_store_once_the_store_is_back(store, monkeypatch):
    bucket = FakeBucket(monkeypatch)
    store.is_down = True
    log = MetricLog(HTTP, "run1", "s3://bucket/runs/r/spool", pause_s=0.02)
    log.log(0, {"loss": 1.0})
    wait_until(lambda: len(bucket.objects) == 1)
    store.is_down = False
    assert log.close() == 0
    assert store.steps() == [0]
    assert bucket.objects == {}


def test_points_of_a_checkpoint_outlive_the_machine_that_logged_them(store, monkeypatch, lost_log):
    bucket = FakeBucket(monkeypatch)
    log = lost_log("s3://bucket/runs/r/spool")
    for step in range(3):
        log.log(step, {"loss": 1.0})
    log.persist()
    log.log(3, {"loss": 1.0})
    # The machine is lost here, before anything is sent.
    assert store.steps() == []
    assert deliver_spools(HTTP, "run1", "s3://bucket/runs/r/spool") == 0
    assert store.steps() == [0, 1, 2]
    assert bucket.objects == {}
