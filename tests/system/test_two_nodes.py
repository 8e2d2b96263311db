"""The whole pipeline on two nodes, with the commands that a user types, and with a lost node.

Photos in S3 become shards in S3; a submitted job trains on both nodes, loses one and gets it back,
finishes and registers; a clean process loads the model by its alias and predicts. The duration of
each part is printed and written to timings.log.
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
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

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
from pipeline.drill.command import Command
from pipeline.drill.scene import read_result
from pipeline.drill.two_nodes import CPUS, TwoNodes, two_nodes
from pipeline.recipe import from_json
from pipeline.training.sample_log import SampleLog, merge_sample_lists
from pipeline.training.step import WorkerContext
from tests.object_stores import find_free_port, read_objects, s3_bucket, wait_for_object

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TRAIN_IMAGES, VAL_IMAGES = 36, 4
STEPS, CHECKPOINT_EVERY, GLOBAL_BATCH = 40, 10, 4
CPUS_PER_WORKER = 2
TIMEOUT_S = 240
"""Timeout of a line that takes seconds on an idle machine."""

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


@contextmanager
def run_command(*words: str, environment: dict[str, str]) -> Iterator[Command]:
    command = Command(words, environment, folder=ROOT)
    try:
        yield command
    finally:
        command.kill()


class TimingLog:
    """Prints and writes the duration of each part."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def add(self, part: str, seconds: float, details: str = "") -> None:
        line = f"{part:<24}{seconds:6.1f} s   {details}".rstrip()
        print(line)  # noqa: T201  for pytest -s
        with self._file.open("a") as stream:
            stream.write(f"{line}\n")


def list_workers(raylet: int) -> list[psutil.Process]:
    """List the training workers of a node: they are children of its raylet."""
    children = psutil.Process(raylet).children()
    return [child for child in children if child.name().startswith("ray::RayTrainWo")]


@contextmanager
def mlflow_server(folder: Path, artifacts: str) -> Iterator[str]:
    """Start `mlflow server` with a local database and artifacts in the bucket, without waiting."""
    port = find_free_port()
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


def wait_for_server(address: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            requests.get(f"{address}/health", timeout=5).raise_for_status()
        except requests.RequestException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def training_command(bucket: str, tracking: str) -> list[str]:
    """Return the command of one of our jobs with a tiny model."""
    flags = f"""
        --name far --storage {bucket}/runs --data.root {bucket}/shards
        --data.train-split train --data.val-split val
        --tracking.uri {tracking} --tracking.model-name far --tracking.log-every 1
        --scale.num-workers 2 --scale.cpus-per-worker {CPUS_PER_WORKER} --scale.no-use-gpu
        --scale.images-per-microbatch 1 --scale.threads-per-worker 1
        --optim.global-batch {GLOBAL_BATCH} --optim.steps {STEPS} --optim.warmup-steps 4
        --optim.decay-at 30 --checkpoint.every-steps {CHECKPOINT_EVERY}
        --data.short-edge-px 48 64 --data.test-short-edge-px 64 --evaluation.boxes truth
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
def run(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Run the pipeline once; return its logs, results and files."""
    here = tmp_path_factory.mktemp("pipeline")
    log = TimingLog(here / "timings.log")
    write_shapes(here / "coco", train_images=TRAIN_IMAGES, val_images=VAL_IMAGES)
    planted = SimpleNamespace(
        key=f"AKIA{secrets.token_hex(8)}", secret=secrets.token_hex(20), token=secrets.token_hex(32)
    )
    with s3_bucket() as bucket, pytest.MonkeyPatch.context() as patch:
        # Unlike the usual test keys, these are in no file of the repository.
        patch.setenv("AWS_ACCESS_KEY_ID", planted.key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", planted.secret)
        patch.setenv("OMP_NUM_THREADS", "1")
        # One line for each request to the bucket would hide the reason of a failure.
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
                wait_for_server(tracking)
                trained = train(bucket, tracking, nodes, log)
                (here / "job.log").write_text(trained.text)
                files = {
                    str(path): path.read_bytes()
                    for folder in (here, nodes.folder)
                    for path in folder.rglob("*")
                    if path.is_file()
                }
                files["the dashboard"] = read_dashboard(nodes.dashboard, planted.token)
            photo = next((here / "coco" / "val").iterdir())
            answer = load_and_predict(tracking, photo, here)
            log.add("pull", answer["pull_s"], "models:/far@champion in a clean process")
            log.add("predict", answer["predict_s"], f"{len(answer['rows'])} masks in one photo")
            files |= read_objects(bucket)
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


def ingest(bucket: str, nodes: TwoNodes, log: TimingLog) -> None:
    for split, workers in (("train", "2"), ("val", "-1")):  # -1 is the default: without Ray
        command = ["python", "jobs/ingest.py", "coco", "--root", f"{bucket}/raw/coco", "--workers",
                   workers, "--split", split, "--out", f"{bucket}/shards/{split}"]  # fmt: skip
        with run_command(*command, environment=nodes.environment) as job:
            images = read_result(job)["images"]
            log.add(f"ingest {split}", time.monotonic() - job.started_s, f"{images} images")


def train(bucket: str, tracking: str, nodes: TwoNodes, log: TimingLog) -> SimpleNamespace:
    """Submit the job, lose a node while it trains, add another, and wait for the end."""
    submit = ["ray", "job", "submit", "--working-dir", "."]
    command = [*submit, "--", *training_command(bucket, tracking)]
    environment = {**nodes.environment, "RAY_API_SERVER_ADDRESS": nodes.dashboard}
    # `ray job submit` would prefer this address to that of the API server.
    del environment["RAY_ADDRESS"]
    with run_command(*command, environment=environment) as job:
        first = job.wait_for(r"^step 1/")
        log.add("submit to first step", first.at_s - job.started_s)
        before = (list_workers(nodes.head_raylet), list_workers(nodes.second_raylet))
        job.wait_for(rf"^step {CHECKPOINT_EVERY + 1}/")  # a step to lose, after a checkpoint
        wait_for_object(f"{bucket}/runs/far/checkpoints/step-00000010/checkpoint.json")
        lost_s = time.monotonic()
        nodes.lose()
        _, left = psutil.wait_procs(before[1], timeout=TIMEOUT_S)
        waits = job.wait_for(r"The run waits until enough nodes have joined")
        log.add("kill to log line", waits.at_s - lost_s)
        nodes.add()
        log.add("kill to a new node", time.monotonic() - lost_s)
        resumed = job.wait_for(r"workers ready, resuming from step \d+", after=waits.number)
        next_step = job.wait_for(r"^step \d+/", after=resumed.number)
        log.add("kill to next step", next_step.at_s - lost_s, resumed.text.partition(": ")[0])
        after = (list_workers(nodes.head_raylet), list_workers(nodes.second_raylet))
        result = read_result(job)
        log.add("submit to the end", time.monotonic() - job.started_s)
        log.add("register", result["seconds_by_phase"]["register"], result["model"])
        return SimpleNamespace(
            result=result,
            lines=[line.text for line in job.lines],
            text="\n".join(line.text for line in job.lines),
            before=before,
            after=after,
            left=left,
            resumed=int(re.search(r"step (\d+)", resumed.text)[1]),
            next_step=int(re.search(r"step (\d+)", next_step.text)[1]),
        )


def read_dashboard(dashboard: str, token: str) -> bytes:
    """Return the dashboard's data on jobs, actors and nodes."""
    pages = ("api/jobs/", "api/v0/actors?detail=1", "api/v0/nodes?detail=1", "api/v0/jobs?detail=1")
    answers = []
    for page in pages:
        answer = requests.get(
            f"{dashboard}/{page}", headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
        answer.raise_for_status()
        answers.append(answer.content)
    return b"\n".join(answers)


def load_and_predict(tracking: str, photo: Path, here: Path) -> dict:
    """Use the model with nothing but the address of the registry."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, "models:/far@champion", str(photo)],
        cwd=here,
        env=environment | {"MLFLOW_TRACKING_URI": tracking, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_node_has_a_worker_before_and_after_the_loss(run):
    assert 2 * CPUS_PER_WORKER > CPUS
    assert [len(workers) for workers in run.before] == [1, 1]
    assert [len(workers) for workers in run.after] == [1, 1]
    assert run.left == []
    assert not set(run.before[0] + run.before[1]) & set(run.after[0] + run.after[1])


def test_training_resumes_from_a_checkpoint(run):
    assert run.resumed in range(CHECKPOINT_EVERY, STEPS, CHECKPOINT_EVERY)
    assert run.next_step == run.resumed + 1
    assert run.result["steps"] == STEPS
    expected = f"{run.bucket}/runs/far/checkpoints/step-{STEPS:08d}"
    assert run.result["checkpoint"] == expected


def test_the_log_reports_each_event_in_order(run):
    text = "\n".join(run.lines)
    patterns = (
        r"2 workers ready, starting at step 0",
        r"node \S+ \(\S+\) was lost with everything that ran on it; 1 node left",
        rf"Ray has {CPUS} CPUs, the run needs 5 \(2 workers, and 1 CPU for Ray Data\)\. "
        r"The run waits until enough nodes have joined, and then resumes",
        r"node \S+ \(\S+\) joined; 2 nodes now",
        rf"2 workers ready, resuming from step {run.resumed}: s3://bucket/runs/far/",
        rf"step {STEPS}/{STEPS} ",
    )
    positions = [[match.start() for match in re.finditer(p, text)] for p in patterns]
    assert [len(each) for each in positions] == [1] * len(patterns), text
    assert positions == sorted(positions), text
    restarts = [line for line in run.lines if "restarting all workers" in line]
    assert len(restarts) == 1, text
    assert re.match(r"worker \d on \S+ \(pid \d+\) (died|lost its connection)", restarts[0]), text
    assert "Traceback" not in text


def test_every_photo_is_trained_once_per_epoch(run):
    rows = list(csv.reader(io.StringIO(storage.read_bytes(run.result["samples"]).decode())))[1:]
    epochs = [[int(image) for _, epoch, _, image in rows if int(epoch) == n] for n in range(5)]
    truth = json.loads((run.here / "coco" / "annotations" / "instances_train.json").read_text())
    photos = sorted(image["id"] for image in truth["images"])
    assert [sorted(epoch) for epoch in epochs[:4]] == [photos] * 4
    assert max(Counter(epochs[4]).values()) == 1
    assert sum(map(len, epochs)) == len(rows) == STEPS * GLOBAL_BATCH


def test_a_run_without_ray_trains_the_same_samples(run):
    recipe = from_json(storage.read_bytes(f"{run.bucket}/runs/far/recipe.json").decode())
    alone = SampleLog(WorkerContext(device=torch.device("cpu")))
    for item in local_batches(
        f"{run.bucket}/shards/train",
        recipe.data,
        seed=recipe.seed,
        global_batch=GLOBAL_BATCH,
        images_per_microbatch=1,
        first_step=0,
        stop_step=STEPS,
    ):
        alone.add(item.microbatches, step=item.step, epoch=item.epoch)
    alone.write(str(run.here / "alone"))
    _, digest = merge_sample_lists(str(run.here / "alone"), steps=STEPS, global_batch=GLOBAL_BATCH)
    assert run.result["samples_sha256"] == digest


def test_mlflow_has_each_step_once(run):
    store = MlflowClient(run.tracking, run.tracking)
    for name in ("loss", "lr"):
        history = store.get_metric_history(run.result["run_id"], name)
        assert sorted(point.step for point in history) == list(range(1, STEPS + 1)), name
    assert store.get_run(run.result["run_id"]).info.status == "FINISHED"
    # The empty folder may remain.
    assert [name for name in run.files if re.search(r"/spool/.", name)] == []


def test_the_alias_points_to_the_version_of_this_run(run):
    found = MlflowClient(run.tracking, run.tracking).get_model_version_by_alias("far", "champion")
    assert f"models:/far/{found.version}" == run.result["model"]
    assert found.run_id == run.result["run_id"]
    assert run.result["is_champion"]
    keys = [name for name in run.files if name.startswith("artifacts/")]
    assert any(name.endswith("model.safetensors") for name in keys)


def test_the_registry_is_enough_to_predict_without_ray(run):
    assert run.answer["ray"] == []
    with Image.open(run.photo) as photo:
        size_hw = photo.size[::-1]
    masks = [mask_api.decode(row["rle"]) for row in run.answer["rows"]]
    assert {mask.shape for mask in masks} == {size_hw}
    assert any(mask.any() for mask in masks)


def test_the_keys_are_in_no_file_no_log_and_not_in_the_dashboard(run):
    assert len(run.files) > 100
    assert b"python jobs/coco_r50.py" in run.files["the dashboard"]
    for name, value in vars(run.planted).items():
        assert [file for file, data in run.files.items() if value.encode() in data] == [], name
