"""Errors of failed workers: which one is reported, and whether the run tries again."""

from types import SimpleNamespace

import pytest
import ray
import ray.train
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)

from pipeline.errors import DatasetError, TrainingError
from pipeline.training import failures
from pipeline.training.failures import FailureCallback, to_ray_lost_error, to_training_error

RESUME = "Resume from the last checkpoint with: python jobs/tiny.py --name tiny"


class FakeRelay:
    """Records reported losses; all workers have the same location."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.report_worker = SimpleNamespace(remote=lambda *line: self.lines.append(line))
        self.get_location = SimpleNamespace(remote=lambda rank: f"host-{rank} (pid 7)")


@pytest.fixture
def relay(monkeypatch) -> FakeRelay:
    monkeypatch.setattr(failures.ray, "get", lambda value: value)
    return FakeRelay()


def wrap(error: Exception) -> Exception:
    """Wrap an error of a worker like Ray Train."""
    return UserExceptionWithTraceback(error, f"Traceback\n{type(error).__name__}: {error}")


def dead_worker() -> Exception:
    return WorkerHealthCheckFailedError("health check", failure=ray.exceptions.ActorDiedError())


PARTNER_LOST = wrap(RuntimeError("gloo: Connection closed by peer [127.0.0.1]"))


def test_a_dead_worker_is_reported_and_all_workers_restart(relay):
    callback = FailureCallback(relay, max_failures=2)
    callback.after_exception(None, {0: PARTNER_LOST, 1: dead_worker()})
    assert relay.lines == [(1, "died; restarting all workers from the last checkpoint")]


def test_a_lost_connection_and_other_errors_are_named(relay):
    callback = FailureCallback(relay, max_failures=2)
    callback.after_exception(None, {0: PARTNER_LOST})
    callback.after_exception(None, {1: wrap(RuntimeError("\n  out of memory\nmore"))})
    assert [line.partition(";")[0] for _, line in relay.lines] == [
        "lost its connection to another worker, which died or is unreachable",
        "stopped (RuntimeError: out of memory)",
    ]


def test_no_restart_is_announced_after_the_last_attempt(relay):
    FailureCallback(relay, max_failures=0).after_exception(None, {0: dead_worker()})
    assert relay.lines == []


def test_an_error_of_the_user_ends_the_run_at_once(relay):
    callback = FailureCallback(relay, max_failures=2)
    with pytest.raises(DatasetError, match="row 7"):
        callback.after_exception(None, {0: dead_worker(), 1: wrap(DatasetError("row 7"))})
    with pytest.raises(TrainingError, match="worker 1 failed:\nTraceback\nValueError: bad shape"):
        callback.after_exception(None, {0: PARTNER_LOST, 1: wrap(ValueError("bad shape"))})
    assert relay.lines == []


def test_the_final_error_has_the_first_cause_its_place_and_the_resume_command(relay, job):
    error = ray.train.WorkerGroupError("two failed", {0: PARTNER_LOST, 1: dead_worker()})
    text = str(to_training_error(error, relay, job=job))
    assert text.startswith("worker 1 failed:\nhealth check")
    assert "It ran on host-1 (pid 7), after 3 restarts (--scale.max-failures).\n" in text
    assert text.endswith(RESUME)


def test_a_node_without_memory_is_said_without_rays_advice(relay, job):
    killed = ray.exceptions.OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. To disable worker killing, "
        "set the environment variable `RAY_memory_monitor_refresh_ms` to zero."
    )
    FailureCallback(relay, max_failures=2).after_exception(None, {1: killed})
    assert relay.lines[0][1].startswith("was killed because its node ran out of memory; restarting")
    error = ray.train.WorkerGroupError("one failed", {1: killed})
    text = str(to_training_error(error, relay, job=job))
    assert text.startswith("worker 1 was killed because its node ran out of memory. Use fewer")
    assert "RAY_memory" not in text
    controller = ray.train.ControllerError(killed)
    text = str(to_training_error(controller, relay, job=job))
    assert text.startswith("Ray Train stopped because a node ran out of memory. Use fewer")
    assert "RAY_memory" not in text


def test_errors_of_the_controller_keep_their_kind(relay, job):
    def convert(cause):
        return to_training_error(ray.train.ControllerError(cause), relay, job=job)

    dataset = DatasetError("row 7")
    assert convert(dataset) is dataset
    assert str(convert(TrainingError("worker 0 failed"))) == f"worker 0 failed\n{RESUME}"
    assert str(convert(OSError("disk full"))) == f"Ray Train stopped: OSError: disk full\n{RESUME}"
    unknown = ray.train.TrainingFailedError("no workers")
    assert str(to_training_error(unknown, relay, job=job)) == (
        f"Ray Train stopped: no workers\n{RESUME}"
    )


def test_a_lost_cluster_suggests_to_check_it(job):
    error = to_ray_lost_error(ray.exceptions.RaySystemError("gone"), job=job)
    assert str(error).startswith("Ray stopped during the run: RaySystemError: ")
    assert f"\nCheck the cluster with: ray status\n{RESUME}" in str(error)
