"""One process holds a run, on local disks and in object stores."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import RecipeError
from pipeline.training import run_lock
from pipeline.training.run_lock import Holder, hold_run
from tests.object_stores import s3_bucket

pytestmark = pytest.mark.timeout(60)

OTHER_MACHINE = Holder(
    key="other", host="node7", machine="node7 boot", pid=4, user="ada", since_s=1e9
)


@pytest.fixture(autouse=True)
def fast(monkeypatch) -> None:
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(run_lock, "SILENT_S", 0.5)


@pytest.fixture(params=["local", "s3"])
def run_uri(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "runs" / "mine")
        return
    with s3_bucket() as bucket:
        yield f"{bucket}/runs/mine"


def leave_file(run_uri: str, holder: Holder) -> None:
    """Write what a holder that was killed leaves behind."""
    content = asdict(replace(holder, alive_s=time.time()))
    uri = storage.join(run_uri, "lock", f"{holder.key}.json")
    storage.write_bytes_atomic(uri, json.dumps(content).encode())


def list_lock_files(run_uri: str) -> list[str]:
    return storage.list_files(storage.join(run_uri, "lock"))


def test_a_second_process_is_told_who_holds_the_run_and_since_when(run_uri):
    with hold_run(run_uri):
        before = list_lock_files(run_uri)
        with pytest.raises(RecipeError) as error, hold_run(run_uri):
            pass
        assert list_lock_files(run_uri) == before
    text = str(error.value)
    for part in (run_uri, f"pid {os.getpid()}", "since 20", f"kill {os.getpid()}", "--name mine-2"):
        assert part in text
    with hold_run(run_uri):
        pass
    assert list_lock_files(run_uri) == []


def test_a_holder_whose_process_is_gone_is_taken_over(run_uri, caplog):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    leave_file(run_uri, replace(run_lock._describe_this_process(), key="dead", pid=dead.pid))
    dead.wait()
    with hold_run(run_uri):
        assert len(list_lock_files(run_uri)) == 1
    assert f"taking over {run_uri} from " in caplog.text
    assert f"(pid {dead.pid}" in caplog.text
    assert "its process is gone" in caplog.text


def test_another_process_with_the_id_of_a_holder_is_not_the_holder(run_uri, caplog):
    me = run_lock._describe_this_process()
    leave_file(run_uri, replace(me, key="before", process_start="1"))
    with hold_run(run_uri):
        pass
    assert "its process is gone" in caplog.text


def test_a_silent_holder_on_another_machine_is_taken_over(run_uri, caplog):
    leave_file(run_uri, OTHER_MACHINE)
    with hold_run(run_uri):
        assert len(list_lock_files(run_uri)) == 1
    assert "from node7 (pid 4, user ada) since 2001-09-09" in caplog.text
    assert "silent for 0.5 s" in caplog.text


def test_a_holder_that_is_alive_on_another_machine_is_not_taken_over(run_uri, monkeypatch):
    with hold_run(run_uri):
        monkeypatch.setattr(run_lock, "_identify_machine", lambda: "another machine")
        with (
            pytest.raises(RecipeError, match=rf"stop it \(kill {os.getpid()}, on "),
            hold_run(run_uri),
        ):
            pass


def test_a_process_that_hangs_on_this_machine_is_taken_over(run_uri, caplog):
    me = replace(run_lock._describe_this_process(), key="hangs")
    uri = storage.join(run_uri, "lock", "hangs.json")
    content = asdict(replace(me, alive_s=time.time() - 100))
    storage.write_bytes_atomic(uri, json.dumps(content).encode())
    with hold_run(run_uri):
        pass
    assert "silent for 0.5 s" in caplog.text


def test_a_file_that_cannot_be_read_is_watched_and_taken_over(run_uri, caplog):
    storage.write_bytes_atomic(storage.join(run_uri, "lock", "bad.json"), b"{")
    with hold_run(run_uri):
        pass
    assert "an unknown host" in caplog.text


def test_a_holder_that_was_taken_over_is_told_and_writes_no_more(run_uri, monkeypatch):
    # Its own silence on a busy machine is another reason.
    monkeypatch.setattr(run_lock, "SILENT_S", 60.0)
    lost: list[str] = []
    with hold_run(run_uri, on_loss=lost.append):
        (mine,) = list_lock_files(run_uri)
        storage.remove(mine)
        leave_file(run_uri, replace(OTHER_MACHINE, since_s=time.time()))
        end = time.monotonic() + 60
        while not lost and time.monotonic() < end:
            time.sleep(0.02)
    assert "was taken over by node7 (pid 4, user ada)" in lost[0]
    assert [uri.rpartition("/")[2] for uri in list_lock_files(run_uri)] == ["other.json"]


def test_a_heartbeat_that_crosses_a_takeover_does_not_hide_it(run_uri):
    lost: list[str] = []
    with hold_run(run_uri, on_loss=lost.append):
        leave_file(run_uri, replace(OTHER_MACHINE, since_s=time.time()))
        end = time.monotonic() + 20
        while not lost and time.monotonic() < end:
            time.sleep(0.02)
    assert "was taken over by node7 (pid 4, user ada)" in lost[0]


def test_of_many_that_start_at_once_exactly_one_holds_the_run(run_uri, monkeypatch):
    # Not to be taken over on a busy machine.
    monkeypatch.setattr(run_lock, "SILENT_S", 60.0)
    start, done = threading.Barrier(8), threading.Event()
    holding, refused = [], []

    def compete(index: int) -> None:
        start.wait()
        try:
            with hold_run(run_uri):
                holding.append(index)
                done.wait(30)
        except RecipeError as error:
            refused.append(str(error))
            if len(refused) == 7:
                done.set()

    threads = [threading.Thread(target=compete, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(holding), len(refused)) == (1, 7)


def test_a_run_that_is_refused_before_it_wrote_anything_leaves_no_folder(tmp_path):
    run_uri = tmp_path / "runs" / "refused"
    with pytest.raises(ValueError, match="bad data"), hold_run(str(run_uri)):
        raise ValueError("bad data")
    assert not run_uri.parent.exists()
    with hold_run(str(run_uri)):
        Path(run_uri, "recipe.json").write_text("{}")
    assert run_uri.exists()
