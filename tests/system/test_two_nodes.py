"""The whole road on two nodes, with the commands that a user types, and a node lost on the way.

Photos in S3 become shards in S3; a submitted job trains on both nodes, loses one and gets it back,
finishes and registers; a clean process pulls the model by its alias and predicts. How long each part
took is printed, and is in the file road.log.
"""

import csv
import hashlib
import io
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest
import requests
from mlflow import MlflowClient

from pipeline import storage
from pipeline.data.sources.shapes import write_shapes
from pipeline.data.stream import local_batches
from pipeline.recipe import from_dict
from tests.object_stores import ACCESS_KEY, SECRET_KEY, everything_in, free_port, s3_bucket
from tests.system.two_nodes import CPUS, TwoNodes, two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

ROOT = Path(__file__).parents[2]
TRAIN_IMAGES, VAL_IMAGES = 36, 4
STEPS, CHECKPOINT_EVERY, GLOBAL_BATCH = 40, 10, 4
CPUS_PER_WORKER = 2
PATIENCE_S = 180
"""How long a line is waited for, which comes within seconds on a machine that has time."""

CLEAN_PROCESS = """
import json, sys, time
import mlflow
began = time.monotonic()
model = mlflow.pyfunc.load_model(sys.argv[1])
pulled = time.monotonic()
rows = model.predict([sys.argv[2]], params={"score_threshold": 0.0})
print(json.dumps({
    "pull_s": pulled - began,
    "predict_s": time.monotonic() - pulled,
    "rows": rows.to_dict("records"),
    "ray": sorted(name for name in sys.modules if name.partition(".")[0] == "ray"),
}))
"""


class Line(NamedTuple):
    number: int
    at_s: float
    text: str


class Followed:
    """A command whose output is read as it comes, each line with its time."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[Line] = []
        self._news = threading.Condition()
        self._over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for text in self.process.stdout:
            with self._news:
                self.lines.append(Line(len(self.lines), time.monotonic(), text.rstrip()))
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def wait_for(self, pattern: str, *, after: int = -1) -> Line:
        """Give the first line with a pattern behind the line of a number."""

        def found() -> Line | None:
            behind = self.lines[after + 1 :]
            return next((line for line in behind if re.search(pattern, line.text)), None)

        with self._news:
            self._news.wait_for(lambda: self._over or found(), timeout=PATIENCE_S)
            if line := found():
                return line
        pytest.fail(f"no line has {pattern!r}:\n{self.text}")

    def result(self) -> dict:
        """Wait for the end, and give the RESULT line."""
        line = self.wait_for(r"^RESULT ")
        assert self.process.wait(timeout=PATIENCE_S) == 0, self.text
        return json.loads(line.text.removeprefix("RESULT "))

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)


@contextmanager
def followed(*command: str, environment: dict[str, str]) -> Iterator[Followed]:
    it = Followed([sys.executable, *command], environment)
    try:
        yield it
    finally:
        it.process.kill()
        it.process.wait()
        it._reader.join(timeout=10)
        it.process.stdout.close()


class RoadLog:
    """What a part of the road took, printed and kept."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def took(self, part: str, seconds: float, what: str = "") -> None:
        line = f"{part:<24}{seconds:6.1f} s   {what}".rstrip()
        print(line)
        with self._file.open("a") as stream:
            stream.write(f"{line}\n")


def workers_of(raylet: int) -> list[psutil.Process]:
    """Give the training's workers on a node: its raylet is their parent."""
    return [
        child
        for child in psutil.Process(raylet).children()
        if child.name().startswith("ray::RayTrainWo")
    ]


@contextmanager
def mlflow_server(folder: Path, artifacts: str) -> Iterator[str]:
    """Run `mlflow server` as its own users do: a database here, artifacts in the bucket."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
               "--artifacts-destination", artifacts, "--host", "127.0.0.1", "--port", str(port),
               "--workers", "1"]  # fmt: skip
    with (
        (folder / "server.log").open("w") as stream,
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        ) as process,
    ):
        try:
            end = time.monotonic() + PATIENCE_S
            while not _answers(f"{address}/health"):
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < end, (folder / "server.log").read_text()
                time.sleep(0.5)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False


def training(bucket: str, tracking: str) -> list[str]:
    """A job of the repository, made small."""
    flags = f"""
        --name far --storage {bucket}/runs --data.root {bucket}/shards
        --data.train-split train --data.val-split val
        --tracking.uri {tracking} --tracking.model-name far --tracking.log-every 1
        --scale.num-workers 2 --scale.cpus-per-worker {CPUS_PER_WORKER} --scale.no-use-gpu
        --scale.images-per-pass 1 --scale.threads-per-worker 1
        --optim.global-batch {GLOBAL_BATCH} --optim.steps {STEPS} --optim.warmup-steps 4
        --optim.decay-at 30 --checkpoint.every-steps {CHECKPOINT_EVERY}
        --data.short-edge-px 48 64 --data.test-short-edge-px 64 --data.long-edge-px 96
        --model.num-classes 5 --model.backbone.name resnet18 --model.backbone.norm group
        --model.backbone.freeze-at 0 --model.backbone.fpn-channels 16
        --model.proposals.anchor-sizes-px 8 16 32 64 128
        --model.proposals.top-k-before-nms-train 50 --model.proposals.top-k-before-nms-test 50
        --model.proposals.top-k-after-nms 20 --model.proposals.samples-per-image 32
        --model.box-head.hidden 32 --model.box-head.samples-per-image 16
        --model.box-head.detections-per-image 5
        --model.mask-head.channels 16 --model.mask-head.num-convs 1
    """
    return ["jobs/coco_r50.py", *flags.split(), "--model.backbone.weights", ""]
