"""Read and write files by path or URI, on local disks and in object stores.

A plain path or file:// is local; s3:// and gs:// are object stores. Credentials and endpoints come
from the environment or the machine's role (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS, ...), never from the URI, so recipes, logs and errors contain none.
Writes are atomic: a reader sees the old file or the new one, never a part.
"""

import errno
import logging
import os
import random
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import PipelineError, StorageError

_log = logging.getLogger(__name__)

T = TypeVar("T")

_LOCAL = ("", "file")
_SCHEMES = (*_LOCAL, "s3", "gs")

_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "gs": ("CLOUD_STORAGE_EMULATOR_ENDPOINT",),
}
"""Variables that name a store that is not the cloud's own; the first one that is set counts."""

_NO_CONNECTION = re.compile(r"(?:curlCode: \d+, |CURL error \[\d+\]=)(.*?)(?:;| error_info|$)")
"""In the messages of AWS's and Google's libraries."""

_BUSY = re.compile("SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|HTTP status 50[0234]")
"""In the messages of a store that answers, but not with what it was asked for."""
_BUSY_LIMIT_S = 180
_LONGEST_PAUSE_S = 10.0

_EMULATOR_TIMEOUT = timedelta(seconds=5)
_GS_TIMEOUT = timedelta(seconds=30)
"""Google's default is 15 minutes, even without credentials."""


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a path or URI, and the path inside it.

    Raises:
        StorageError: the scheme is unknown, or the URI has credentials or no bucket.
    """
    scheme, path = _split(uri)
    if scheme in _LOCAL:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
    return _object_store(scheme, _endpoint(scheme)), path


def absolute(uri: str) -> str:
    """Return the path or URI independent of the working directory."""
    scheme, path = _split(uri)
    return resolve(uri)[1] if scheme in _LOCAL else f"{scheme}://{path}"


def is_local(uri: str) -> bool:
    """Return whether a path or URI is on a local file system."""
    return _split(uri)[0] in _LOCAL


def join(uri: str, *parts: str) -> str:
    """Append parts to a path or URI."""
    return "/".join([uri.rstrip("/") or "/", *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Return whether a file or folder exists."""
    return bool(_file_info(uri).type != pafs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    """Return whether a folder exists."""
    return bool(_file_info(uri).type == pafs.FileType.Directory)


def file_size(uri: str) -> int | None:
    """Return the size of a file in bytes, or None if it does not exist."""
    info = _file_info(uri)
    return int(info.size) if info.type == pafs.FileType.File else None


def open_file(uri: str) -> pa.NativeFile:
    """Open a file for random access.

    Raises:
        StorageError: it is missing or cannot be read.
    """
    fs, path = resolve(uri)
    return _ask(uri, "read", lambda: fs.open_input_file(path))


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        StorageError: it is missing or cannot be read.
    """
    fs, path = resolve(uri)

    def read() -> bytes:
        # Not as a stream: on S3 every chunk of a stream is a request, hundreds for a checkpoint.
        with fs.open_input_file(path) as file:
            return bytes(file.read())

    return _ask(uri, "read", read)


def write_bytes_atomic(uri: str, data: bytes) -> None:
    """Write a whole file atomically.

    Raises:
        StorageError: the file cannot be written; an old version is kept.
    """
    fs, path = resolve(uri)

    def write() -> None:
        if isinstance(fs, pafs.LocalFileSystem):
            _write_local(Path(path), data)
            return
        # The object appears when the stream is closed. All data goes in one write: if one of
        # several failed, closing would publish the first part.
        with fs.open_output_stream(path, compression=None) as stream:
            stream.write(data)

    _ask(uri, "write", write)


def list_files(uri: str, *, suffix: str = "", recursive: bool = False) -> list[str]:
    """List the files of a folder by name; a missing folder counts as empty."""
    prefix = "" if is_local(uri) else f"{_split(uri)[0]}://"
    found = list_folder(uri, recursive=recursive)
    files = (info.path for info in found if info.type == pafs.FileType.File)
    return sorted(prefix + name for name in files if name.endswith(suffix))


def list_folder(uri: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
    """List the entries of a folder; a missing folder counts as empty."""
    fs, path = resolve(uri)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
    found: list[pafs.FileInfo] = _ask(uri, "list", lambda: fs.get_file_info(selector))
    return found


def remove(uri: str) -> None:
    """Delete a file or a whole folder, if it exists."""
    fs, path = resolve(uri)

    def delete() -> None:
        match fs.get_file_info(path).type:
            case pafs.FileType.File:
                fs.delete_file(path)
            case pafs.FileType.Directory:
                # On gs a folder is not an object and disappears with its last file.
                with suppress(FileNotFoundError):
                    fs.delete_dir(path)

    _ask(uri, "delete", delete)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder on the disk for temporary files, and delete it at the end of the block.

    Raises:
        StorageError: the disk is full.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except PipelineError:
            raise
        except Exception as error:  # libraries have errors of their own for a full disk
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            raise StorageError(
                f"{tempfile.gettempdir()}: no space left on device, the disk for temporary files "
                "is full. Free some space there, or name another folder: export TMPDIR=/PATH. "
                "Then run the same command again"
            ) from error


def _file_info(uri: str) -> pafs.FileInfo:
    fs, path = resolve(uri)
    info: pafs.FileInfo = _ask(uri, "access", lambda: fs.get_file_info(path))
    return info


def _split(uri: str) -> tuple[str, str]:
    if "://" not in uri:
        return "", uri
    # A "#" is part of a name.
    parts = urlsplit(uri, allow_fragments=False)
    if parts.scheme not in _SCHEMES:
        shown = f"{parts.scheme}://..."
        raise StorageError(f"{shown}: unknown scheme; use a local path, file://, s3:// or gs://")
    if parts.scheme == "file":
        path = uri.partition("://")[2].removeprefix("localhost")
        if not path.startswith("/"):
            raise StorageError(
                f"{uri}: file:// needs an absolute path; write file:///FOLDER, or the plain path "
                f"{path}"
            )
        return "file", path
    if parts.username or parts.password or parts.query:
        raise StorageError(
            f"{parts.scheme}://{parts.hostname or ''}{parts.path}: credentials and options do not "
            "belong in a URI; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL "
            "instead"
        )
    if not parts.netloc:
        raise StorageError(f"{uri}: the bucket is missing; write {parts.scheme}://BUCKET/PATH")
    return parts.scheme, f"{parts.netloc}{parts.path}".rstrip("/")


def _endpoint(scheme: str) -> str:
    """Return the endpoint of a store that is not the cloud's own, from its usual variable."""
    return next((os.environ[name] for name in _ENDPOINTS[scheme] if os.environ.get(name)), "")


def _explain_no_connection(uri: str, reason: str) -> str:
    """Name the store of a URI, without a password, and the variable that sets it."""
    scheme = _split(uri)[0]
    if not (endpoint := _endpoint(scheme)):
        return f"no connection to its cloud ({reason}); check the network of this machine"
    variable = next(name for name in _ENDPOINTS[scheme] if os.environ.get(name))
    place = endpoint.rpartition("@")[2]
    return f"no connection to {place} ({reason}); start it, or correct {variable}"


@lru_cache(maxsize=8)
def _object_store(scheme: str, endpoint: str) -> pafs.FileSystem:
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    other = (
        {"scheme": parts.scheme, "endpoint_override": parts.netloc + parts.path.rstrip("/")}
        if endpoint
        else {}
    )
    if scheme == "gs":
        # An emulator has no accounts.
        timeout = _EMULATOR_TIMEOUT if endpoint else _GS_TIMEOUT
        return pafs.GcsFileSystem(retry_time_limit=timeout, anonymous=bool(endpoint), **other)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    # Delayed open: a small file is one request, not the three of a multipart upload.
    return pafs.S3FileSystem(region=region, allow_delayed_open=True, **other)


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        with draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _ask(uri: str, verb: str, call: Callable[[], T]) -> T:
    """Call, and again while the store answers that it is too busy; its library gives up in seconds.

    Raises:
        StorageError: another error, or the store is still busy after _BUSY_LIMIT_S.
    """
    started_s, pause_s = time.monotonic(), 1.0
    while True:
        try:
            with _wrap_errors(uri, verb):
                return call()
        except StorageError as error:
            if not _BUSY.search(str(error)) or time.monotonic() - started_s > _BUSY_LIMIT_S:
                raise
            if pause_s == 1.0:
                _log.warning("%s; trying again for %d s", error, _BUSY_LIMIT_S)
        # Random, so that many workers do not try again in step.
        time.sleep(random.uniform(0.5, 1.0) * pause_s)  # noqa: S311  no secret
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


@contextmanager
def _wrap_errors(uri: str, verb: str) -> Iterator[None]:
    """Raise file system errors as StorageError, with the action and a hint."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise StorageError(f"cannot {verb} {uri!r}: {error}; correct the path") from error
    except OSError as error:
        if found := _NO_CONNECTION.search(str(error)):
            reason = _explain_no_connection(uri, found[1])
            raise StorageError(f"cannot {verb} {uri}: {reason}") from error
        if isinstance(error, FileNotFoundError) and verb != "write":
            hint = "no such file; check the path"
        elif is_local(uri):
            hint = "check the folder's permissions and the free space on its disk"
        else:
            hint = "check the bucket's name and permissions, and the credentials in the environment"
        cause = str(error).splitlines()[0][:300]
        raise StorageError(
            f"cannot {verb} {uri}: {type(error).__name__}: {cause}; {hint}"
        ) from error
