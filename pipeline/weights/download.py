"""Download a file over HTTP: with progress, atomically, and on from where it broke off."""

import fcntl
import http.client
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pipeline.errors import StorageError
from pipeline.progress import log_bytes

_CHUNK_BYTES = 2**20
_TIMEOUT_S = 30.0
_MAX_TRIES = 5
"""Attempts that bring nothing new before the download fails."""
_WAIT_S = 1.0
"""Before the second attempt; twice as long before each further one."""
_BUSY = frozenset({429, 500, 502, 503, 504})


class _BrokenOffError(Exception):
    """The connection broke, or the server was busy; another attempt may bring the rest."""


class _KeepHttps(HTTPRedirectHandler):
    def redirect_request(self, req: Request, *args: Any) -> Request | None:  # noqa: ANN401
        if req.type == "https" and urlsplit(args[-1]).scheme != "https":
            host = urlsplit(args[-1]).hostname
            raise URLError(f"the server redirects to {host} without encryption")
        return super().redirect_request(req, *args)


def download(url: str, target: Path, *, check: Callable[[Path], None]) -> None:
    """Download a file, unless another process does it at the same time: then wait for it.

    Args:
        url: http:// or https://, without a password.
        target: where the file appears once it is whole and checked. The part that has arrived is
            beside it, and a later call goes on there.
        check: raises an error if the content is wrong; the part is then deleted.

    Raises:
        StorageError: there is no such file, no connection, or no space.
    """
    part = target.with_name(f"{target.name}.part")
    tag = target.with_name(f"{target.name}.etag")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(part, target) as stream:
            if stream is None:
                return
            _fill(url, stream, tag)
            try:
                check(part)
            except StorageError:
                part.unlink()
                tag.unlink(missing_ok=True)
                raise
            part.replace(target)
            tag.unlink(missing_ok=True)
    except HTTPError as error:
        raise StorageError(f"{url}: the server answers {error.code} {error.reason}") from error
    except URLError as error:
        host = urlsplit(url).netloc
        reason = getattr(error.reason, "strerror", "") or error.reason
        raise StorageError(f"no connection to {host} ({reason})") from error
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error


@contextmanager
def _lock(part: Path, target: Path) -> Iterator[BinaryIO | None]:
    """Open the part for this process alone; None if another one has completed the file."""
    while True:
        with part.open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            # While we waited, the part may have become the file, or been deleted.
            is_ours = part.exists() and part.stat().st_ino == os.fstat(stream.fileno()).st_ino
            if is_ours or target.exists():
                yield stream if is_ours else None
                return


def _fill(url: str, stream: BinaryIO, tag: Path) -> None:
    """Append the missing bytes, in several attempts if need be."""
    tries = 0
    while True:
        before = stream.seek(0, os.SEEK_END)
        try:
            _append(url, stream, tag)
        except _BrokenOffError as error:
            stream.flush()
            got = stream.seek(0, os.SEEK_END)
            tries = 1 if got > before else tries + 1
            if tries >= _MAX_TRIES:
                raise StorageError(
                    f"{url}: broke off {tries} times at {got / 1e6:.1f} MB ({error}); the same "
                    "command goes on from there"
                ) from error
            time.sleep(_WAIT_S * 2 ** (tries - 1))
        else:
            stream.flush()
            os.fsync(stream.fileno())
            return


def _append(url: str, stream: BinaryIO, tag: Path) -> None:
    start = stream.seek(0, os.SEEK_END)
    request = Request(url)  # noqa: S310  the caller allows http and https only
    # The rest of another version of the file would not fit.
    if start and tag.exists():
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", tag.read_text())
    with _open(request, tag) as response:
        goes_on = response.status == http.client.PARTIAL_CONTENT
        if not goes_on:
            start = 0
            stream.truncate(0)
            _save_version(response, tag)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        name = urlsplit(url).path.rpartition("/")[2]
        for chunk in log_bytes(_read(response), f"download {name}", start=start, total=total):
            stream.write(chunk)
    if total is not None and stream.seek(0, os.SEEK_END) < total:
        raise _BrokenOffError("the connection ended early")


def _open(request: Request, tag: Path) -> Any:  # noqa: ANN401  an HTTPResponse
    try:
        return build_opener(_KeepHttps).open(request, timeout=_TIMEOUT_S)
    except HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            tag.unlink(missing_ok=True)
            raise _BrokenOffError("the server has no such part; starting over") from error
        if error.code in _BUSY:
            raise _BrokenOffError(f"the server answers {error.code}") from error
        raise
    except URLError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from error


def _read(response: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(_CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenOffError(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def _save_version(response: Any, tag: Path) -> None:  # noqa: ANN401
    """Keep what names this version of the file; without it, a later attempt starts over."""
    version = response.headers.get("ETag", "")
    if not version or version.startswith("W/"):
        version = response.headers.get("Last-Modified", "")
    if version:
        tag.write_text(version)
    else:
        tag.unlink(missing_ok=True)
