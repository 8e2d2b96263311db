"""A soak finds memory that grows, and its faults come in the order of its seed."""

import os
import random
import subprocess
import sys

import pytest

from pipeline.drill.process_watch import Sample, classify, measure_growth, watch_processes
from pipeline.drill.soak_faults import SOAK_FAULTS, schedule_faults

HOUR_S, EVERY_S = 3600, 20


def live(kind, *, pid, mb_per_hour, start_s=0, life_s=HOUR_S):
    """Sample a process that needs memory to start, has noise, and grows at a constant rate."""
    draw = random.Random(pid)  # noqa: S311  no secret
    for second in range(0, life_s, EVERY_S):
        grown = mb_per_hour * second / HOUR_S + min(second, 120)
        yield Sample(start_s + second, kind, pid, 100 + grown + draw.uniform(-3, 3), 40)


def find(growth, kind):
    return next(each for each in growth if each.kind == kind)


def test_growth_is_found_in_processes_that_were_restarted_too():
    samples = [
        *live("raylet", pid=1, mb_per_hour=0),
        *live("driver", pid=2, mb_per_hour=120, life_s=1200),
        *live("driver", pid=3, mb_per_hour=120, life_s=1200, start_s=1500),
        *live("worker", pid=4, mb_per_hour=900, life_s=290),
        *live("gcs_server", pid=5, mb_per_hour=120),
        *live("relay", pid=6, mb_per_hour=120, life_s=600),
    ]
    growth = measure_growth(samples)
    assert find(growth, "raylet").verdict == "flat"
    driver = find(growth, "driver")
    assert (driver.processes, driver.verdict) == (2, "GROWS")
    assert driver.mb_per_hour == pytest.approx(120, abs=15)
    assert find(growth, "gcs_server").verdict == "grows, of Ray"
    assert find(growth, "relay").verdict == "flat", "14 MB in 7 minutes may come and go"
    assert (find(growth, "worker").verdict, find(growth, "worker").mb_per_hour) == (
        "too short",
        None,
    )


def test_a_peak_is_no_growth():
    samples = list(live("driver", pid=5, mb_per_hour=0))
    peak = [each._replace(memory_mb=900.0) if 2000 < each.seconds < 2400 else each
            for each in samples]  # fmt: skip
    assert measure_growth(peak)[0].verdict == "flat"


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["ray::RayTrainWorker"], "RayTrainWorker"),
        (["ray::SplitCoordinator.get"], "SplitCoordinator"),
        (["ray::MapBatches(run_item)"], "MapBatches"),
        (["/x/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=/tmp/x"], "raylet"),
        (["/x/python", "-u", "-m", "jobs.train", "/x/recipe.json"], "driver"),
        (["/x/python", "-m", "mlflow", "server"], "MLflow server"),
        (["sh", "-c", "true"], ""),
        ([], ""),
    ],
)
def test_processes_are_counted_by_what_they_run(command, kind):
    assert classify(command) == kind


def test_the_watch_writes_the_memory_of_a_process_that_this_one_has_started(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.drill.process_watch._SAMPLE_EVERY_S", 0.05)
    name = ["ray::Sleeper", "-c", "print('ready', flush=True); input()"]
    with subprocess.Popen(
        name, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with watch_processes(tmp_path / "memory.csv") as watch:
            while not watch.samples:
                os.sched_yield()
        process.stdin.close()
    # The Ray of other tests may run below this process too.
    own = [each for each in watch.samples if each.pid == process.pid]
    assert {each.kind for each in own} == {"Sleeper"}
    assert own[0].memory_mb > 1
    assert "Sleeper" in (tmp_path / "memory.csv").read_text()


def test_a_seed_gives_the_same_faults_and_each_as_often():
    first, second, other = (
        [next(schedule) for schedule in [schedule_faults(random.Random(seed), every_s=60)] * 700]  # noqa: S311
        for seed in (0, 0, 1)
    )
    assert first == second != other
    names = [name for _, name in first]
    assert {names.count(name) for name in SOAK_FAULTS} == {100}
    assert sum(pause_s for pause_s, _ in first) / 700 == pytest.approx(60, rel=0.15)
