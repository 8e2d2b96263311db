import time
from types import SimpleNamespace

from pipeline.doctor.probe import NodeProbe
from pipeline.tracking import stores


def test_the_time_of_the_tracking_server_excludes_imports(monkeypatch):
    def slow_client(uri):
        time.sleep(2)  # longer than the import of MLflow
        return SimpleNamespace(search_experiments=lambda max_results: time.sleep(0.05))

    monkeypatch.setattr(stores, "create_client", slow_client)
    error, seconds = NodeProbe().track("sqlite:///x.db", 5)
    assert not error
    assert 0.05 <= seconds < 1.8


def test_a_failing_tracking_server_is_reported_with_its_time(monkeypatch):
    def refuse(uri):
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(stores, "create_client", refuse)
    error, seconds = NodeProbe().track("sqlite:///x.db", 5)
    assert error == "ConnectionError: nobody listens"
    assert seconds >= 0


def test_a_long_error_is_cut_at_a_word(monkeypatch):
    def fail(uri, max_results=1):
        raise OSError("every word of this is long enough " * 30)

    monkeypatch.setattr(stores, "create_client", fail)
    error, _ = NodeProbe().track("sqlite:///x.db", 5)
    assert error.endswith(" ...")
    assert error.split()[-2] in ["every", "word", "of", "this", "is", "long", "enough"]
    assert len(error) < 420
