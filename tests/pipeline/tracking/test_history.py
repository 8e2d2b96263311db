"""The history of a run is what it logged, in the order of the steps."""

import pytest

from pipeline.errors import StorageError
from pipeline.recipe import Recipe
from pipeline.tracking import runs
from pipeline.tracking.history import read_history


def test_curves_and_versions_of_a_run(tmp_path):
    handle = runs.open_run(Recipe(name="logged", storage=str(tmp_path)))
    for step, loss in ((20, 1.0), (10, 2.0)):
        runs.log_metrics(handle, {"loss": loss, "unwanted": 0.0}, step=step)
    history = read_history(
        handle.tracking_uri, handle.run_id, wants=lambda name: name != "unwanted"
    )
    assert history.curves == {"loss": [(10, 2.0), (20, 1.0)]}
    assert {"python", "torch", "mlflow"} <= history.environment.keys()


def test_a_store_without_the_run_is_an_error_without_its_password(tmp_path):
    uri = runs.open_run(Recipe(name="other", storage=str(tmp_path))).tracking_uri
    with pytest.raises(StorageError, match="does not give run missing"):
        read_history(uri, "missing", wants=lambda _: True)
    with pytest.raises(StorageError) as caught:
        read_history("http://me:secret@127.0.0.1:9", "missing", wants=lambda _: True)
    assert "no connection" in str(caught.value)
    assert "secret" not in str(caught.value)
