"""Progress lines come at intervals and after the last image."""

import logging

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


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (50_531, "14:02:11")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert progress.format_duration(seconds) == text
