"""An MLflow server that can be killed and started again, with its data."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pipeline.drill.fault_proxy import find_free_port
from pipeline.errors import DrillError

_START_TIMEOUT_S = 180.0


class TrackingServer:
    """The server of a folder, always at the same address.

    Args:
        folder: for the database and the artifacts; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._port = folder, find_free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the server, and wait until it answers.

        Raises:
            DrillError: it does not.
        """
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", f"{self._folder}/artifacts"]
        # Without the seven processes that run jobs of MLflow's own.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end_s = time.monotonic() + _START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < end_s:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):  # noqa: S310  http
                return
            time.sleep(0.5)
        raise DrillError("the MLflow server did not start")

    def kill(self) -> None:
        """Kill the server with kill -9."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def query(self, sql: str) -> list[tuple[object, ...]]:
        """Return the rows that a query of the database finds."""
        with closing(sqlite3.connect(self._folder / "mlflow.db")) as database:
            return database.execute(sql).fetchall()


@contextmanager
def tracking_server(folder: Path) -> Iterator[TrackingServer]:
    """Run a server until the end of the block."""
    server = TrackingServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
