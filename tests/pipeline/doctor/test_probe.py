"""What a probe says of the node it runs on."""

import time
from types import SimpleNamespace

from pipeline.doctor.probe import NodeProbe
from pipeline.tracking import stores


def test_the_time_of_the_tracking_server_is_its_own(monkeypatch):
    def slow_client(uri):
        time.sleep(0.5)  # as long as MLflow takes to import, and longer
        return SimpleNamespace(search_experiments=lambda max_results: time.sleep(0.05))

    monkeypatch.setattr(stores, "client", slow_client)
    error, seconds = NodeProbe().track("sqlite:///x.db", 5)
    assert not error
    assert 0.05 <= seconds < 0.4


def test_a_tracking_server_that_fails_is_told_with_its_time(monkeypatch):
    def refused(uri):
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(stores, "client", refused)
    error, seconds = NodeProbe().track("sqlite:///x.db", 5)
    assert error == "ConnectionError: nobody listens"
    assert seconds >= 0


def test_a_long_error_ends_with_whole_words(monkeypatch):
    def fail(uri, max_results=1):
        raise OSError("every word of this is long enough " * 30)

    monkeypatch.setattr(stores, "client", fail)
    error, _ = NodeProbe().track("sqlite:///x.db", 5)
    assert error.endswith(" ...")
    assert error.split()[-2] in ["every", "word", "of", "this", "is", "long", "enough"]
    assert len(error) < 420
