"""The doctor on a cluster of two nodes: healthy, with problems, and with a node that hangs."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.drill import two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
ALL_CPUS = 2 * two_nodes.CPUS
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Start two nodes that require a token, which is in the environment."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "AWS_ACCESS_KEY_ID": "test-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with two_nodes.two_nodes(environment) as nodes:
        yield SimpleNamespace(
            environment=nodes.environment,
            raylet=nodes.second_raylet,
            storage=str(tmp_path_factory.mktemp("doctor") / "runs"),
        )


@pytest.fixture(scope="module")
def tracking() -> Iterator[str]:
    """Start a fake MLflow server; a real one would take half a minute to start."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(b"OK")

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path.endswith("/mlflow/experiments/search")
            self.answer(b'{"experiments": []}')

        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run_doctor(environment, *flags) -> SimpleNamespace:
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "doctor.py", *map(str, flags)],
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    *lines, last = done.stdout.splitlines()
    result = json.loads(last.removeprefix("RESULT "))
    problems = {name: each for name, each in result["checks"].items() if each["level"] != "ok"}
    # How full this machine's disk is does not belong to these tests (test_checks.py has the rule).
    if problems.get("disk", {}).get("level") == "warning":
        del problems["disk"]
        lines = [line.removesuffix("; warnings: disk") for line in lines]
    assert (done.returncode == 0) == result["healthy"]
    assert "Traceback" not in done.stdout + done.stderr
    return SimpleNamespace(rc=done.returncode, lines=lines, result=result, problems=problems)


def test_a_healthy_cluster_can_train(cluster, tracking):
    found = run_doctor(
        cluster.environment,
        *("--num-workers", 2, "--storage", cluster.storage, "--tracking-uri", tracking),
    )
    assert (found.rc, found.problems) == (0, {}), found.lines
    assert found.lines[-1] == "this cluster can train"
    assert found.result["nodes"] == 2
    assert found.result["all_reduce_gb_per_s"] > 0
    assert list(Path(cluster.storage).iterdir()) == []


def test_all_problems_are_reported_at_once_each_with_a_fix(cluster):
    says = {
        "capacity": f"take {ALL_CPUS} of the {ALL_CPUS} CPUs",
        "storage": "cannot be written on 2 of 2 nodes",
        "tracking": f"{CLOSED} does not answer on 2 of 2 nodes",
    }
    found = run_doctor(
        # Nothing listens at the endpoint of the bucket.
        {**cluster.environment, "AWS_ENDPOINT_URL": CLOSED},
        *("--num-workers", ALL_CPUS, "--storage", "s3://bucket/runs", "--tracking-uri", CLOSED),
    )
    assert found.rc == 1
    assert found.problems.keys() == says.keys()
    for check, text in says.items():
        assert text in found.problems[check]["text"]
        assert found.problems[check]["fix"]
    failed = [number for number, line in enumerate(found.lines) if line.startswith("FAIL")]
    assert len(failed) == len(says)
    assert all("fix: " in found.lines[number + 1] for number in failed)


@contextlib.contextmanager
def halt(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_node_that_hangs_is_reported_without_a_long_wait(cluster, tracking):
    with halt(cluster.raylet):
        found = run_doctor(
            cluster.environment,
            *("--num-workers", 2, "--storage", cluster.storage, "--tracking-uri", tracking),
            *("--timeout-s", 12),
        )
    assert found.rc == 1
    assert "1 of 2 nodes did not answer" in found.problems["nodes"]["text"]
    # The other node is still checked.
    assert found.result["checks"]["storage"]["level"] == "ok"


def test_a_wrong_token_is_reported(cluster):
    stranger = {**cluster.environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    found = run_doctor(stranger)
    assert found.rc == 1
    assert "token is missing or incorrect" in found.problems["ray"]["text"]
    assert "RAY_AUTH_TOKEN" in found.problems["ray"]["fix"]


def test_an_unreachable_ray_is_reported_quickly():
    found = run_doctor({**os.environ, "RAY_ADDRESS": "127.0.0.1:9"})
    assert found.rc == 1
    assert "refused" in found.problems["ray"]["text"]
    assert found.result["seconds"] < 20
