"""A web server on this machine with one file, which can break off, be busy, or know no parts."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """The file of the server, and what it does wrong."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag = '"1"'
        self.break_after: list[int] = []
        """Bytes after which each of the next answers breaks off."""
        self.statuses: list[int] = []
        """Answers before the first good one."""
        self.knows_parts = True
        self.requests: list[tuple[str, str]] = []
        """Path and range of each request."""
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range", "")
        self.requests.append((handler.path, wanted))
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        same = handler.headers.get("If-Range") == self.etag
        start = int(wanted[6:-1]) if wanted and same and self.knows_parts else 0
        if start and start >= len(self.content):
            handler.send_error(416)
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("ETag", self.etag)
        handler.end_headers()
        if self.break_after:
            body = body[: self.break_after.pop(0)]
        handler.wfile.write(body)


@contextmanager
def serve(content: bytes) -> Iterator[Site]:
    """Serve a file under every path."""
    site = Site(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
