"""A job that is stopped from outside names the command that resumes it."""

import logging
import os
import signal

import pytest

from pipeline.errors import Terminated
from pipeline.training.stop import StopRequest


def terminate_in_ray() -> None:
    """Be terminated while Ray waits for a result: it replaces what the handler raises."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except Terminated:
        raise KeyboardInterrupt from None


def test_sigterm_is_told_even_if_ray_replaces_the_exception():
    with (
        pytest.raises(Terminated, match=r"^stopped by SIGTERM\. Resume with: python jobs/tiny\.py"),
        StopRequest("python jobs/tiny.py").catch_sigterm(),
    ):
        terminate_in_ray()


def test_ctrl_c_logs_the_command_and_remains_an_interrupt(caplog):
    with (
        caplog.at_level(logging.INFO, "pipeline"),
        pytest.raises(KeyboardInterrupt) as raised,
        StopRequest("python jobs/tiny.py").catch_sigterm(),
    ):
        raise KeyboardInterrupt
    assert not isinstance(raised.value, Terminated)
    assert [each.getMessage() for each in caplog.records] == [
        "Stopped. Resume with: python jobs/tiny.py"
    ]


def test_the_first_sigterm_in_the_loop_asks_and_the_second_ends():
    stop = StopRequest("python jobs/tiny.py")
    with stop.catch_sigterm(), stop.training():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.action == "save"
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
