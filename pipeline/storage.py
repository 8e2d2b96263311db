"""One rule for every path and URI: what a user may name, and how it is read and written.

A plain path or file:// is local, s3:// and gs:// are object stores. Credentials and endpoints
come from the environment or the machine's role (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS, ...), never from the URI, so no recipe, log or error can hold one.
Writes are atomic: a reader sees the old file or the new one, never half of one.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import StorageError

_LOCAL = ("", "file")
_SCHEMES = (*_LOCAL, "s3", "gs")

_GS_PATIENCE = timedelta(seconds=30)
"""Google's client would try for 15 minutes, also where there are no credentials."""


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Give the file system of a path or URI, and the path inside it.

    Raises:
        StorageError: the scheme is unknown, or the URI carries credentials or has no bucket.
    """
    scheme, path = _split(uri)
    if scheme in _LOCAL:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111
    return _object_store(scheme, _endpoint(scheme)), path


def absolute(uri: str) -> str:
    """Give the same place in a form that holds in every working directory and on every worker."""
    scheme, path = _split(uri)
    return resolve(uri)[1] if scheme in _LOCAL else f"{scheme}://{path}"


def is_local(uri: str) -> bool:
    """Tell whether a path or URI is on this machine's own disk."""
    return _split(uri)[0] in _LOCAL


def join(uri: str, *parts: str) -> str:
    """Append parts to a path or URI."""
    return "/".join([uri.rstrip("/") or "/", *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Tell whether a file or folder is there."""
    fs, path = resolve(uri)
    with _explained(uri, "look at"):
        return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    """Tell whether a folder is there."""
    fs, path = resolve(uri)
    with _explained(uri, "look at"):
        return bool(fs.get_file_info(path).type == pafs.FileType.Directory)


def file_size(uri: str) -> int | None:
    """Give the bytes of a file, None where there is none."""
    fs, path = resolve(uri)
    with _explained(uri, "look at"):
        info = fs.get_file_info(path)
    return int(info.size) if info.type == pafs.FileType.File else None


def open_file(uri: str) -> pa.NativeFile:
    """Open a file to read it anywhere.

    Raises:
        StorageError: it is missing or cannot be read.
    """
    fs, path = resolve(uri)
    with _explained(uri, "read"):
        return fs.open_input_file(path)


def read_bytes(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        StorageError: it is missing or cannot be read.
    """
    fs, path = resolve(uri)
    # Not as a stream: on S3 each piece of one is a request of its own, hundreds for a checkpoint.
    with _explained(uri, "read"), fs.open_input_file(path) as file:
        return bytes(file.read())


def write_bytes_atomic(uri: str, data: bytes) -> None:
    """Write a whole file so that no reader ever sees half of it.

    Raises:
        StorageError: the place cannot be written; what was there before is still there.
    """
    fs, path = resolve(uri)
    with _explained(uri, "write"):
        if isinstance(fs, pafs.LocalFileSystem):
            _write_local(Path(path), data)
        else:
            # The object appears when the upload is complete. Closing completes it, so all of the
            # data must go in at once: of several writes a failed one would leave the first half.
            with fs.open_output_stream(path, compression=None) as stream:
                stream.write(data)


def list_files(uri: str, *, suffix: str = "", recursive: bool = False) -> list[str]:
    """List the files of a folder by name; a folder that is not there is empty."""
    prefix = "" if is_local(uri) else f"{_split(uri)[0]}://"
    found = list_folder(uri, recursive=recursive)
    files = (info.path for info in found if info.type == pafs.FileType.File)
    return sorted(prefix + name for name in files if name.endswith(suffix))


def list_folder(uri: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
    """List what is in a folder, as the file system tells it: path inside it, type and size."""
    fs, path = resolve(uri)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
    with _explained(uri, "list"):
        found: list[pafs.FileInfo] = fs.get_file_info(selector)
    return found


def remove(uri: str) -> None:
    """Delete a file or a whole folder; what is not there is no error."""
    fs, path = resolve(uri)
    with _explained(uri, "delete"):
        match fs.get_file_info(path).type:
            case pafs.FileType.File:
                fs.delete_file(path)
            case pafs.FileType.Directory:
                # On gs a folder is no object of its own and is gone with the last file in it.
                with suppress(FileNotFoundError):
                    fs.delete_dir(path)


def _split(uri: str) -> tuple[str, str]:
    if "://" not in uri:
        return "", uri
    parts = urlsplit(uri)
    if parts.scheme not in _SCHEMES:
        shown = f"{parts.scheme}://..."
        raise StorageError(f"{shown}: unknown scheme; take a local path, file://, s3:// or gs://")
    if parts.username or parts.password or parts.query:
        raise StorageError(
            f"{parts.scheme}://{parts.hostname or ''}{parts.path}: credentials and options do not "
            "belong into a URI; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL "
            "instead"
        )
    if parts.scheme == "file":
        return "file", parts.path
    if not parts.netloc:
        raise StorageError(f"{uri}: the bucket is missing; write {parts.scheme}://BUCKET/PATH")
    return parts.scheme, f"{parts.netloc}{parts.path}".rstrip("/")


def _endpoint(scheme: str) -> str:
    """Give the address of another store than the cloud's own, under the variable its tools read."""
    if scheme == "gs":
        return os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT") or ""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@lru_cache(maxsize=8)
def _object_store(scheme: str, endpoint: str) -> pafs.FileSystem:
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    other = (
        {"scheme": parts.scheme, "endpoint_override": parts.netloc + parts.path.rstrip("/")}
        if endpoint
        else {}
    )
    if scheme == "gs":
        # An emulator knows no accounts.
        return pafs.GcsFileSystem(retry_time_limit=_GS_PATIENCE, anonymous=bool(endpoint), **other)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    # Delayed: small files are one put, not the three requests of an upload in parts.
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


@contextmanager
def _explained(uri: str, verb: str) -> Iterator[None]:
    """Turn a file system's exception into one that says what was tried and what to check."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and verb != "write":
            hint = "there is no such file; check the path"
        elif is_local(uri):
            hint = "check the folder's rights and the free space on its disk"
        else:
            hint = "check the bucket's name, its rights, and the credentials in the environment"
        cause = str(error).splitlines()[0][:300]
        raise StorageError(
            f"cannot {verb} {uri}: {type(error).__name__}: {cause}; {hint}"
        ) from error
