"""The whole road on two nodes, with the commands that a user types, and a node lost on the way.

Photos in S3 become shards in S3; a submitted job trains on both nodes, loses one and gets it back,
finishes and registers; a clean process pulls the model by its alias and predicts. How long each
part took is printed, and is in the file road.log.
"""

import csv
import io
import json
import logging
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
import torch
from mlflow import MlflowClient
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import storage
from pipeline.data.sources.shapes import write_shapes
from pipeline.data.stream import local_batches
from pipeline.recipe import from_json
from pipeline.training.sample_log import SampleLog, merge
from pipeline.training.step import World
from tests.object_stores import everything_in, free_port, s3_bucket
from tests.system.two_nodes import CPUS, TwoNodes, two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TRAIN_IMAGES, VAL_IMAGES = 36, 4
STEPS, CHECKPOINT_EVERY, GLOBAL_BATCH = 40, 10, 4
CPUS_PER_WORKER = 2
PATIENCE_S = 240
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

    def __init__(self, command: tuple[str, ...], environment: dict[str, str]) -> None:
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
        pytest.fail(f"no line has {pattern!r}:\n{self.tail}")

    def result(self) -> dict:
        """Wait for the end, and give the RESULT line."""
        line = self.wait_for(r"^RESULT ")
        assert self.process.wait(timeout=PATIENCE_S) == 0, self.tail
        return json.loads(line.text.removeprefix("RESULT "))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=10)

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)

    @property
    def tail(self) -> str:
        return "\n".join(line.text for line in self.lines[-80:])


@contextmanager
def followed(*command: str, environment: dict[str, str]) -> Iterator[Followed]:
    it = Followed(command, environment)
    try:
        yield it
    finally:
        it.end()


class RoadLog:
    """What a part of the road took, printed and kept."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def took(self, part: str, seconds: float, what: str = "") -> None:
        line = f"{part:<24}{seconds:6.1f} s   {what}".rstrip()
        print(line)  # noqa: T201  the log of the road, for pytest -s
        with self._file.open("a") as stream:
            stream.write(f"{line}\n")


def workers_of(raylet: int) -> list[psutil.Process]:
    """Give the training's workers on a node: its raylet is their parent."""
    children = psutil.Process(raylet).children()
    return [child for child in children if child.name().startswith("ray::RayTrainWo")]


@contextmanager
def mlflow_server(folder: Path, artifacts: str) -> Iterator[str]:
    """Start `mlflow server`: its database here, artifacts in the bucket; it answers soon after."""
    port = free_port()
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
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def wait_for_answer(address: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            requests.get(f"{address}/health", timeout=5).raise_for_status()
        except requests.RequestException:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            return


def training(bucket: str, tracking: str) -> list[str]:
    """Give the command of one of the repository's own jobs, made small."""
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
    return ["python", "jobs/coco_r50.py", *flags.split(), "--model.backbone.weights", ""]


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Go the road once: what was seen on it, and what it left."""
    here = tmp_path_factory.mktemp("road")
    log = RoadLog(here / "road.log")
    write_shapes(here / "coco", train_images=TRAIN_IMAGES, val_images=VAL_IMAGES)
    planted = SimpleNamespace(
        key=f"AKIA{secrets.token_hex(8)}", secret=secrets.token_hex(20), token=secrets.token_hex(32)
    )
    with s3_bucket() as bucket, pytest.MonkeyPatch.context() as patch:
        # No other file holds these, as ours hold the usual ones.
        patch.setenv("AWS_ACCESS_KEY_ID", planted.key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", planted.secret)
        patch.setenv("OMP_NUM_THREADS", "1")
        # One line for each request to the bucket would bury what a failure is about.
        patch.setattr(logging.getLogger("werkzeug"), "level", logging.WARNING)
        patch.setenv(
            "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        )
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for path in (here / "coco").rglob("*.*"):
            name = path.relative_to(here).as_posix()
            storage.write_bytes_atomic(storage.join(bucket, "raw", name), path.read_bytes())
        with mlflow_server(here, f"{bucket}/artifacts") as tracking:
            token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": planted.token}
            with two_nodes({**os.environ, **token}) as nodes:
                ingest(bucket, nodes, log)
                wait_for_answer(tracking)
                trained = train(bucket, tracking, nodes, log)
                (here / "job.log").write_text(trained.text)
                files = {
                    str(path): path.read_bytes()
                    for folder in (here, nodes.folder)
                    for path in folder.rglob("*")
                    if path.is_file()
                }
                files["the dashboard"] = asked(nodes.dashboard, planted.token)
            photo = next((here / "coco" / "val").iterdir())
            answer = pull_and_predict(tracking, photo, here)
            log.took("pull", answer["pull_s"], "models:/far@champion in a clean process")
            log.took("predict", answer["predict_s"], f"{len(answer['rows'])} masks in one photo")
            files |= everything_in(bucket)
            yield SimpleNamespace(
                **vars(trained),
                bucket=bucket,
                tracking=tracking,
                planted=planted,
                files=files,
                answer=answer,
                photo=photo,
                here=here,
            )


def ingest(bucket: str, nodes: TwoNodes, log: RoadLog) -> None:
    for split in ("train", "val"):
        command = ["python", "jobs/ingest.py", "coco", "--root", f"{bucket}/raw/coco",
                   "--split", split, "--out", f"{bucket}/shards/{split}"]  # fmt: skip
        with followed(*command, environment=nodes.environment) as job:
            images = job.result()["images"]
            log.took(f"ingest {split}", time.monotonic() - job.started_s, f"{images} images")


def train(bucket: str, tracking: str, nodes: TwoNodes, log: RoadLog) -> SimpleNamespace:
    """Submit the job, lose a node while it trains, add one, and wait for its end."""
    submit = ["ray", "job", "submit", "--working-dir", ".", "--", *training(bucket, tracking)]
    environment = {**nodes.environment, "RAY_API_SERVER_ADDRESS": nodes.dashboard}
    # Before the API server's address, the command would take it for one.
    del environment["RAY_ADDRESS"]
    with followed(*submit, environment=environment) as job:
        first = job.wait_for(r"^step 1/")
        log.took("submit to first step", first.at_s - job.started_s)
        before = (workers_of(nodes.head_raylet), workers_of(nodes.second_raylet))
        # Beyond the first checkpoint, so that steps are lost with the node.
        job.wait_for(rf"^step {CHECKPOINT_EVERY + 1}/")
        lost_s = time.monotonic()
        nodes.lose()
        _, left = psutil.wait_procs(before[1], timeout=PATIENCE_S)
        waits = job.wait_for(r"The run waits until enough nodes have joined")
        log.took("kill to word of it", waits.at_s - lost_s)
        nodes.add()
        log.took("kill to a new node", time.monotonic() - lost_s)
        resumed = job.wait_for(r"workers are ready, going on from step \d+", after=waits.number)
        onward = job.wait_for(r"^step \d+/", after=resumed.number)
        log.took("kill to next step", onward.at_s - lost_s, resumed.text.partition(": ")[0])
        after = (workers_of(nodes.head_raylet), workers_of(nodes.second_raylet))
        result = job.result()
        log.took("submit to the end", time.monotonic() - job.started_s)
        log.took("register", result["seconds_by_phase"]["register"], result["model"])
        return SimpleNamespace(
            result=result,
            lines=[line.text for line in job.lines],
            text=job.text,
            before=before,
            after=after,
            left=left,
            resumed=int(re.search(r"step (\d+)", resumed.text)[1]),
            onward=int(re.search(r"step (\d+)", onward.text)[1]),
        )


def asked(dashboard: str, token: str) -> bytes:
    """Give what the dashboard shows of jobs, actors and nodes."""
    pages = ("api/jobs/", "api/v0/actors?detail=1", "api/v0/nodes?detail=1", "api/v0/jobs?detail=1")
    answers = []
    for page in pages:
        answer = requests.get(
            f"{dashboard}/{page}", headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
        answer.raise_for_status()
        answers.append(answer.content)
    return b"\n".join(answers)


def pull_and_predict(tracking: str, photo: Path, here: Path) -> dict:
    """Use the model as someone who knows where the registry is, and nothing else."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, "models:/far@champion", str(photo)],
        cwd=here,
        env=environment | {"MLFLOW_TRACKING_URI": tracking, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_node_has_a_worker_before_and_after_the_loss(road):
    assert 2 * CPUS_PER_WORKER > CPUS
    assert [len(workers) for workers in road.before] == [1, 1]
    assert [len(workers) for workers in road.after] == [1, 1]
    assert road.left == []
    assert not set(road.before[0] + road.before[1]) & set(road.after[0] + road.after[1])


def test_training_goes_on_from_a_checkpoint(road):
    assert road.resumed in range(CHECKPOINT_EVERY, STEPS, CHECKPOINT_EVERY)
    assert road.onward == road.resumed + 1
    assert road.result["steps"] == STEPS
    place = f"{road.bucket}/runs/far/checkpoints/step-{STEPS:08d}"
    assert road.result["checkpoint"] == place


def test_the_log_says_what_happened_in_order(road):
    said = "\n".join(road.lines)
    told = (
        r"2 workers are ready, from the start",
        r"node \S+ \(\S+\) was lost, and all that ran on it; 1 node left",
        rf"Ray has {CPUS} CPUs, the run needs 5 \(2 workers, and 1 CPU for Ray Data\)\. "
        r"The run waits until enough nodes have joined, and then goes on by itself",
        r"node \S+ \(\S+\) has joined: 2 nodes now",
        rf"2 workers are ready, going on from step {road.resumed}: s3://bucket/runs/far/",
        rf"step {STEPS}/{STEPS} ",
    )
    where = [[match.start() for match in re.finditer(part, said)] for part in told]
    assert [len(each) for each in where] == [1] * len(told), said
    assert where == sorted(where), said
    again = [line for line in road.lines if "starting all workers again" in line]
    assert len(again) == 1, said
    assert re.match(r"worker \d on \S+ \(pid \d+\) (died|lost its connection)", again[0]), said
    assert "Traceback" not in said


def test_every_photo_is_trained_once_an_epoch(road):
    rows = list(csv.reader(io.StringIO(storage.read_bytes(road.result["samples"]).decode())))[1:]
    epochs = [[int(image) for _, epoch, _, image in rows if int(epoch) == n] for n in range(5)]
    truth = json.loads((road.here / "coco" / "annotations" / "instances_train.json").read_text())
    photos = sorted(image["id"] for image in truth["images"])
    assert [sorted(epoch) for epoch in epochs[:4]] == [photos] * 4
    assert max(Counter(epochs[4]).values()) == 1
    assert sum(map(len, epochs)) == len(rows) == STEPS * GLOBAL_BATCH


def test_the_samples_are_those_of_a_run_without_ray(road):
    recipe = from_json(storage.read_bytes(f"{road.bucket}/runs/far/recipe.json").decode())
    alone = SampleLog(World(device=torch.device("cpu")))
    for item in local_batches(
        f"{road.bucket}/shards/train",
        recipe.data,
        seed=recipe.seed,
        global_batch=GLOBAL_BATCH,
        images_per_microbatch=1,
        first_step=0,
        stop_step=STEPS,
    ):
        alone.add(item.passes, step=item.step, epoch=item.epoch)
    alone.write(str(road.here / "alone"))
    _, digest = merge(str(road.here / "alone"), steps=STEPS, global_batch=GLOBAL_BATCH)
    assert road.result["samples_sha256"] == digest


def test_each_step_is_in_mlflow_once(road):
    store = MlflowClient(road.tracking, road.tracking)
    for name in ("loss", "lr"):
        history = store.get_metric_history(road.result["run_id"], name)
        assert sorted(point.step for point in history) == list(range(1, STEPS + 1)), name
    assert store.get_run(road.result["run_id"]).info.status == "FINISHED"
    # The folder itself may stay.
    assert [name for name in road.files if re.search(r"/spool/.", name)] == []


def test_the_alias_leads_to_the_version_of_this_run(road):
    found = MlflowClient(road.tracking, road.tracking).get_model_version_by_alias("far", "champion")
    assert f"models:/far/{found.version}" == road.result["model"]
    assert found.run_id == road.result["run_id"]
    assert road.result["is_champion"]
    keys = [name for name in road.files if name.startswith("artifacts/")]
    assert any(name.endswith("model.safetensors") for name in keys)


def test_whoever_has_the_registry_predicts_without_ray(road):
    assert road.answer["ray"] == []
    with Image.open(road.photo) as photo:
        size_hw = photo.size[::-1]
    masks = [mask_api.decode(row["rle"]) for row in road.answer["rows"]]
    assert {mask.shape for mask in masks} == {size_hw}
    assert any(mask.any() for mask in masks)


def test_no_key_is_in_a_file_a_log_or_the_dashboard(road):
    assert len(road.files) > 100
    assert b"python jobs/coco_r50.py" in road.files["the dashboard"]
    for name, value in vars(road.planted).items():
        assert [file for file, data in road.files.items() if value.encode() in data] == [], name
