"""Faults of Ray's workers and nodes: two workers, on this machine or on a cluster of two nodes."""

import os
import secrets
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil

from pipeline.drill.command import Command
from pipeline.drill.process_faults import AFTER_SAVED
from pipeline.drill.scene import (
    STEP,
    Outcome,
    Scene,
    read_result,
    resume,
    seconds_to_next_step,
)
from pipeline.drill.small_disk import fill, small_disk
from pipeline.drill.two_nodes import SECOND_DISK, TwoNodes, two_nodes
from pipeline.errors import DrillError
from pipeline.recipe import Recipe

CONTINUES = "restarting all workers from the last checkpoint"
"""Part of the line about a lost worker."""
_CPUS_PER_WORKER = 2.0
"""More than half of a node's, so that each node has one worker."""
_ROOT = Path(__file__).parents[2]
_PAUSE_S = 20.0
_STOPPED_S, _RUNS_S = 0.15, 0.05
"""Pulses that make a worker four times as slow."""
_PATIENCE_S = 30
"""A worker that stands still for longer is restarted; a run has 180 s."""


def kill_worker(scene: Scene) -> Outcome:
    """Restart all workers from the last checkpoint."""
    with _train_on_workers(scene) as job:
        job.wait_for(AFTER_SAVED)
        fault_s = time.monotonic()
        os.kill(max(_find_workers(job)), signal.SIGKILL)
        lost = job.wait_for(CONTINUES)
        seconds = seconds_to_next_step(job, fault_s, after=lost.number)
        return Outcome(lost.text, seconds, read_result(job), workers=2)


def pause_worker(scene: Scene) -> Outcome:
    """Wait for a worker that stands still for 20 s."""
    with _train_on_workers(scene) as job:
        job.wait_for(AFTER_SAVED)
        fault_s = time.monotonic()
        worker = max(_find_workers(job))
        os.kill(worker, signal.SIGSTOP)
        time.sleep(_PAUSE_S)
        os.kill(worker, signal.SIGCONT)
        seconds = seconds_to_next_step(job, fault_s, after=job.lines[-1].number)
        return Outcome("nothing", seconds, read_result(job), workers=2)


def hang_worker(scene: Scene) -> Outcome:
    """Notice a worker that stands still for good, and restart all workers."""
    patience = {"RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": str(_PATIENCE_S)}
    impatient = replace(scene, environment=scene.environment | patience)
    with _train_on_workers(impatient) as job:
        job.wait_for(AFTER_SAVED)
        fault_s = time.monotonic()
        os.kill(max(_find_workers(job)), signal.SIGSTOP)
        lost = job.wait_for(CONTINUES)
        seconds = seconds_to_next_step(job, fault_s, after=lost.number)
        return Outcome(lost.text, seconds, read_result(job), workers=2)


def slow_worker(scene: Scene) -> Outcome:
    """Name the worker that the others wait for, and train on."""
    with scene.train(scene.long_recipe(workers=2)) as job:
        job.wait_for(STEP.format(step=5))
        worker = max(_find_workers(job))
        while (saw := job.find(rf"pid {worker}\) is slow")) is None and job.process.poll() is None:
            # It ends before the job does.
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGSTOP)
                time.sleep(_STOPPED_S)
                os.kill(worker, signal.SIGCONT)
            time.sleep(_RUNS_S)
        result = read_result(job)
        if saw is None:
            raise DrillError(f"the log does not name process {worker} as slow:\n{job.tail}")
        return Outcome(saw.text, None, result, workers=2, is_long=True)


def terminate_group(scene: Scene) -> Outcome:
    """Stop when a scheduler sends SIGTERM to all processes, Ray's too; then go on."""
    recipe = scene.recipe(workers=2)
    with scene.train(recipe) as job:
        job.wait_for(AFTER_SAVED)
        fault_s = job.send_to_group(signal.SIGTERM)
        if job.wait() == 0:
            raise DrillError(f"the job did not stop:\n{job.tail}")
        saw = job.wait_for("Resume ").text
    return resume(scene, recipe, saw, fault_s)


def lose_node(scene: Scene) -> Outcome:
    """Wait for another node, and go on from the last checkpoint."""
    with _train_on_nodes(scene) as (nodes, job):
        job.wait_for(AFTER_SAVED)
        fault_s = time.monotonic()
        nodes.lose()
        waits = job.wait_for("The run waits until enough nodes have joined")
        nodes.add()
        seconds = seconds_to_next_step(job, fault_s, after=waits.number)
        return Outcome(waits.text, seconds, read_result(job), workers=2)


def fill_node_disk(scene: Scene) -> Outcome:
    """Train on when the disk of a node is full that has only Ray's files."""
    with _train_on_nodes(scene, second_disk=small_disk) as (nodes, job):
        job.wait_for(AFTER_SAVED)
        fault_s, after = time.monotonic(), job.lines[-1].number
        fill(nodes.folder / SECOND_DISK / "filler")
        seconds = seconds_to_next_step(job, fault_s, after=after)
        result = read_result(job)
        lost = job.find(CONTINUES)
        return Outcome(lost.text if lost else "nothing", seconds, result, workers=2)


def shrink_cluster(scene: Scene) -> Outcome:
    """Go on with one worker on the node that is left: the same images in each step."""
    with _train_on_nodes(scene) as (nodes, job):
        job.wait_for(AFTER_SAVED)
        fault_s = time.monotonic()
        nodes.lose()
        saw = job.wait_for("The run waits until enough nodes have joined").text
        job.send(signal.SIGTERM)
        job.wait()
        alone = replace(scene, environment=nodes.environment)
        outcome = resume(alone, node_recipe(scene), saw, fault_s, "--scale.num-workers", "1")
        return outcome._replace(workers=None)


def lose_head(scene: Scene) -> Outcome:
    """Say that the cluster is gone, and go on in a new one."""
    with _train_on_nodes(scene) as (nodes, job):
        job.wait_for(AFTER_SAVED)
        fault_s = time.monotonic()
        nodes.stop()
        if job.wait() == 0:
            raise DrillError(f"the job did not fail:\n{job.tail}")
        saw = job.wait_for("Ray stopped during the run|Ray ").text
    with _train_on_nodes(scene) as (_, job):
        seconds = seconds_to_next_step(job, fault_s)
        return Outcome(saw, seconds, read_result(job), workers=2)


def stop_job(scene: Scene) -> Outcome:
    """Write a checkpoint when `ray job stop` ends the job, and go on when it is submitted again."""
    with two_nodes(with_token(scene)) as nodes:
        submitter = nodes.environment | {"RAY_API_SERVER_ADDRESS": nodes.dashboard}
        # `ray job submit` would prefer this address to that of the API server.
        del submitter["RAY_ADDRESS"]
        here = replace(scene, environment=submitter)
        ray = ("-m", "ray.scripts.scripts", "job")
        # The source travels with the job, unless the package is installed on every node.
        travels = ("--working-dir", str(_ROOT)) if (_ROOT / "pyproject.toml").exists() else ()
        job_command = (sys.executable, *here.training_command(node_recipe(scene)))

        def submit(name: str) -> AbstractContextManager[Command]:
            return here.run(
                *(*ray, "submit", *travels, "--submission-id", name, "--", *job_command)
            )

        with submit("first") as job:
            job.wait_for(AFTER_SAVED)
            fault_s = time.monotonic()
            _stop_job(nodes, "first")
            saw = job.wait_for("SIGTERM: stopping at step").text
        with submit("second") as job:
            seconds = seconds_to_next_step(job, fault_s)
            return Outcome(saw, seconds, read_result(job), workers=2)


@contextmanager
def _train_on_workers(scene: Scene) -> Iterator[Command]:
    with scene.train(scene.recipe(workers=2)) as job:
        yield job


@contextmanager
def _train_on_nodes(
    scene: Scene, *, second_disk: Callable[[Path], AbstractContextManager[None]] | None = None
) -> Iterator[tuple[TwoNodes, Command]]:
    with two_nodes(with_token(scene), second_disk=second_disk) as nodes:
        here = replace(scene, environment=nodes.environment)
        with here.train(node_recipe(scene)) as job:
            yield nodes, job


def _stop_job(nodes: TwoNodes, name: str) -> None:
    """Send the request of `ray job stop`, which takes longer to start than the run to finish."""
    request = urllib.request.Request(  # noqa: S310  http
        f"{nodes.dashboard}/api/jobs/{name}/stop",
        method="POST",
        headers={"Authorization": f"Bearer {nodes.environment['RAY_AUTH_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=30):  # noqa: S310
        pass


def node_recipe(scene: Scene) -> Recipe:
    """Return the recipe of a run with one worker on each of two nodes."""
    recipe = scene.recipe(workers=2)
    return replace(recipe, scale=replace(recipe.scale, cpus_per_worker=_CPUS_PER_WORKER))


def with_token(scene: Scene) -> dict[str, str]:
    """Return a scene's environment, with a new token for Ray."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return scene.environment | token


def _find_workers(job: Command) -> list[int]:
    """Return the process ids of the Ray Train workers that a job has started on this machine."""
    children = psutil.Process(job.process.pid).children(recursive=True)
    workers = [each.pid for each in children if each.name().startswith("ray::RayTrainWo")]
    if not workers:
        raise DrillError(f"the job has no workers:\n{job.tail}")
    return workers
