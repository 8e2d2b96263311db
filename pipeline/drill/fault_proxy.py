"""An HTTP proxy before an object store, which delays, refuses or cuts requests on demand."""

import http.client
import importlib.util
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from pipeline.errors import DrillSkippedError

Fault = Literal["", "slow", "unavailable", "gone", "expired"]

_DELAY_S = 0.5
_START_TIMEOUT_S = 60.0
_OURS = {"transfer-encoding", "connection", "content-length"}
"""Headers that the proxy sets itself."""
_REFUSALS = {
    "unavailable": (503, "SlowDown", "Please reduce your request rate."),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
}


class FaultProxy(ThreadingHTTPServer):
    """Forwards requests; set `fault` to disturb all later ones."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store_port = port
        self.fault: Fault = ""
        self.gone_at = ""
        """A PUT of a path with this text is cut, and from then on the store is gone."""
        self.faulted = threading.Event()
        """Set at the first request that is disturbed."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """http://127.0.0.1:PORT."""
        return f"http://127.0.0.1:{self.server_port}"

    def choose_fault(self, method: str, path: str) -> Fault:
        """Return the fault of a request."""
        if self.gone_at and method == "PUT" and self.gone_at in path:
            self.fault = "gone"
        if self.fault:
            self.faulted.set()
        return self.fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def _answer(self) -> None:
        body = self._read_body()
        fault = self.server.choose_fault(self.command, self.path)
        if fault == "gone":
            self.close_connection = True
        elif fault in _REFUSALS:
            status, code, message = _REFUSALS[fault]
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self._send(status, {"Content-Type": "application/xml"}, text)
        else:
            time.sleep(_DELAY_S if fault == "slow" else 0)
            self._forward(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815  names of the library

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # a trailer
        return b"".join(chunks)

    def _forward(self, body: bytes) -> None:
        store = http.client.HTTPConnection("127.0.0.1", self.server.store_port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OURS}
        store.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = store.getresponse()
        content = answer.read()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _OURS}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self._send(answer.status, headers, content, length=length)
        store.close()

    def _send(
        self, status: int, headers: Mapping[str, str], content: bytes, *, length: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def s3_with_faults() -> Iterator[tuple[FaultProxy, dict[str, str]]]:
    """Start an S3 server with an empty bucket behind a proxy.

    Yields:
        The proxy, and the environment of processes that use s3://bucket through it.

    Raises:
        DrillSkippedError: moto is not installed.
    """
    if importlib.util.find_spec("moto") is None:
        raise DrillSkippedError("the S3 server is not installed: pip install 'moto[s3,server]'")
    port = find_free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    proxy = FaultProxy(port)
    try:
        _create_bucket(f"http://127.0.0.1:{port}/bucket")
        yield (
            proxy,
            {
                "AWS_ENDPOINT_URL": proxy.address,
                "AWS_ACCESS_KEY_ID": "drill",
                "AWS_SECRET_ACCESS_KEY": "drill",
                "AWS_DEFAULT_REGION": "us-east-1",
            },
        )
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.kill()
        server.wait()


def find_free_port() -> int:
    """Return an unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _create_bucket(url: str) -> None:
    request = urllib.request.Request(url, method="PUT")  # noqa: S310  http
    end_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30):  # noqa: S310
                return
        except OSError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.3)
