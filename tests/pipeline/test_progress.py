"""Progress lines come at intervals and after the last image."""

import io
import logging
import threading

import pytest

from pipeline import progress


def test_log_progress(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now_s)
    with caplog.at_level(logging.INFO):
        for _ in progress.log_progress(
            [8] * 7 + [4], "ingest", total=60, images_of=int, detail=lambda: "problems 3"
        ):
            now_s += 4.0
    assert [record.getMessage() for record in caplog.records] == [
        "ingest 24/60 images  2.0 img/s  problems 3  eta 0:00:18",
        "ingest 48/60 images  2.0 img/s  problems 3  eta 0:00:06",
        "ingest 60/60 images  1.9 img/s  problems 3  eta 0:00:00",
    ]


def test_a_terminal_shows_a_bar_and_keeps_the_last_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(progress.sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO):
        for item in progress.log_progress([8, 4], "ingest", total=12, images_of=int):
            if item == 8:
                logging.getLogger("pipeline.data").warning("a notice")
    shown = terminal.getvalue()
    assert "ingest:" in shown
    assert "/12 " in shown
    # The last thing on the screen is no bar.
    assert shown.rpartition("\r")[2].strip() == ""
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition("  ")[0] for line in lines] == ["a notice", "ingest 12/12 images"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (50_531, "14:02:11")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert progress.format_duration(seconds) == text


def test_a_silence_of_ray_is_told_once_and_what_comes_in_time_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = threading.Event()

    class Heard(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            told.set()

    def make_items():
        yield 1
        assert told.wait(30), "nothing was said"
        yield 2

    logger = logging.getLogger("pipeline.progress")
    logger.addHandler(heard := Heard())
    try:
        assert list(progress.log_silence([1, 2, 3], "ingest", seconds=60)) == [1, 2, 3]
        assert not caplog.messages
        assert list(progress.log_silence(make_items(), "ingest", seconds=0.2)) == [1, 2]
    finally:
        logger.removeHandler(heard)
    assert "ingest: no task has finished for 0 s; look at the nodes: ray status." in caplog.text
    assert len(caplog.messages) == 1
