"""Drills notice what is lost; the faults themselves are real, and take minutes: bsm drill."""

import csv
import inspect
import re
import threading
from pathlib import Path

import pytest
import requests

from pipeline import storage
from pipeline.drill import drills
from pipeline.drill.drills import FAULTS, drill
from pipeline.drill.fault_proxy import FaultProxy
from pipeline.drill.scene import Outcome, Scene
from pipeline.errors import DrillError, DrillSkippedError, RecipeError, StorageError
from tests.object_stores import s3_bucket

SAMPLES = [
    (str(step), "0", str(lane), str(4 * step + lane)) for step in range(3) for lane in range(4)
]


@pytest.fixture
def write_result(tmp_path):
    """Return a function that writes what a drill compares."""

    def write(name, samples=SAMPLES, weights=b"weights"):
        folder = tmp_path / name
        folder.mkdir()
        with (folder / "samples.csv").open("w") as stream:
            csv.writer(stream).writerows([("step", "epoch", "lane", "image_id"), *samples])
        (folder / "weights").write_bytes(weights)
        return {"samples": str(folder / "samples.csv"), "weights": str(folder / "weights")}

    return write


def judge(outcome, expected, tmp_path):
    def fault(_):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    scene = Scene(name="fault", folder=tmp_path, shards="")
    return drills._run(scene, fault, lambda outcome: expected)


def test_a_run_that_equals_the_one_without_a_fault_lost_nothing(write_result, tmp_path):
    outcome = Outcome("resuming from step 2", 3.5, write_result("after"))
    row = judge(outcome, write_result("calm"), tmp_path)
    assert (row.verdict, row.saw, row.seconds_lost) == ("nothing lost", "resuming from step 2", 3.5)
    assert (row.samples_lost, row.samples_repeated) == (0, 0)


@pytest.mark.parametrize(
    ("samples", "counts"),
    [
        (SAMPLES[1:], (1, 0)),
        ([*SAMPLES, SAMPLES[0]], (0, 1)),
        ([SAMPLES[0], *SAMPLES[:-1]], (1, 1)),
    ],
)
def test_lost_and_repeated_samples_are_counted(write_result, tmp_path, samples, counts):
    outcome = Outcome("nothing", None, write_result("after", samples), workers=None)
    row = judge(outcome, write_result("calm"), tmp_path)
    assert (row.verdict, row.samples_lost, row.samples_repeated) == ("LOST", *counts)


def test_other_weights_count_unless_the_number_of_workers_has_changed(write_result, tmp_path):
    calm, after = write_result("calm"), write_result("after", weights=b"others")
    for workers in (0, 2):
        assert judge(Outcome("", None, after, workers), calm, tmp_path).verdict == "LOST"
    changed = Outcome("", None, after, workers=None)
    assert judge(changed, calm, tmp_path).verdict == "nothing lost"


def test_a_fault_that_is_not_told_is_lost_and_one_that_cannot_be_is_skipped(write_result, tmp_path):
    calm = write_result("calm")
    row = judge(DrillError("the job did not fail"), calm, tmp_path)
    assert (row.verdict, row.saw) == ("LOST", "the job did not fail")
    row = judge(DrillSkippedError("only root can mount a small disk"), calm, tmp_path)
    assert (row.verdict, row.saw) == ("skipped", "only root can mount a small disk")


def test_a_drill_that_breaks_is_lost_and_the_others_go_on(write_result, tmp_path):
    row = judge(OSError("no such command: mount"), write_result("calm"), tmp_path)
    assert (row.verdict, row.saw) == (
        "LOST",
        "the drill itself failed: OSError: no such command: mount",
    )


def test_the_folder_of_another_drill_is_refused(tmp_path):
    (tmp_path / "calm").mkdir()
    with pytest.raises(RecipeError, match="is not empty"):
        drill(("two-jobs",), folder=str(tmp_path))


def test_an_unknown_fault_is_an_error_with_a_suggestion():
    with pytest.raises(
        RecipeError, match=r"unknown fault drver-killed, perhaps you meant driver-k"
    ):
        drill(("drver-killed",))


def test_every_fault_says_what_the_run_must_do():
    assert all(inspect.getdoc(fault) for fault in FAULTS.values())
    page = (Path(__file__).parents[3] / "docs" / "faults.md").read_text()
    named = [
        name for row in re.findall(r"^\|(.*?)\|", page, re.M) for name in re.findall("`(.*?)`", row)
    ]
    assert [name for name in named if name in FAULTS] == list(FAULTS)


def test_the_proxy_disturbs_an_object_store_and_lets_it_recover(monkeypatch, caplog):
    with s3_bucket() as bucket:
        proxy = FaultProxy(int(storage._endpoint("s3").rpartition(":")[2]))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        storage.write_bytes_atomic(f"{bucket}/kept", b"content")
        for fault, says in (("expired", "credentials"), ("gone", "no connection")):
            proxy.fault = fault
            with pytest.raises(StorageError, match=says):
                storage.read_bytes(f"{bucket}/kept")
            assert proxy.faulted.is_set()
        proxy.fault = "unavailable"
        assert requests.get(f"{proxy.address}/bucket/kept", timeout=10).status_code == 503
        # The library of AWS gives up before; the store is asked until it answers.
        threading.Timer(3, lambda: setattr(proxy, "fault", "")).start()
        storage.write_bytes_atomic(f"{bucket}/later", b"content")
        assert "trying again" in caplog.text
        assert storage.read_bytes(f"{bucket}/later") == b"content"
        assert storage.read_bytes(f"{bucket}/kept") == b"content"
        proxy.shutdown()
        proxy.server_close()
