"""Read the files of a data set as downloaded: from folders, or from zips without unpacking them.

Every URI here is a path or URI, or ARCHIVE.zip!/MEMBER. Members are read in place and never written
to a disk, so their names cannot escape a folder; an archive with such names is refused all the
same, because nobody distributes one in good faith.
"""

import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import pyarrow.fs as pafs

from bsm.checkpoints.foreign_files import describe_foreign_file
from pipeline import storage
from pipeline.errors import StorageError

_INSIDE = ".zip!"

_BROKEN_MEMBER = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""Raised by zipfile on a wrong checksum, truncated data, an unknown method or a password."""

_BROKEN_ZIP = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error)
"""Raised on opening a file that is not a complete zip."""

_MAX_RATIO = 100
"""Of a file that is read whole; annotations shrink to a third or a tenth."""
_SMALL_BYTES = 2**17
"""Smaller members may shrink as they like."""

_RETRY = "is the download complete? Download it again, or unpack it to check"


class FileContent(NamedTuple):
    """The bytes of a file, or why there are none."""

    data: bytes | None
    """None if the file is missing or broken."""
    error: str = ""
    """Why it is broken; empty if it is missing."""


class FileReader:
    """Thread-safe reader of files by mount and name; keeps zips open."""

    def __init__(self) -> None:
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._open = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def read(self, mount: str, name: str, *, max_bytes: int) -> FileContent:
        """Read the first max_bytes of a file.

        Args:
            mount: URI of a folder.
            name: the file's name below it.
            max_bytes: where to stop.

        Raises:
            StorageError: the file cannot be read, although it exists.
        """
        archive_uri, inner = _split(mount)
        if not archive_uri:
            return _read(*storage.resolve(mount), name, max_bytes=max_bytes)
        with self._lock:
            if archive_uri not in self._archives:
                self._archives[archive_uri] = self._open.enter_context(_open_zip(archive_uri))
        archive = self._archives[archive_uri]
        try:
            with archive.open(f"{inner}/{name}" if inner else name) as stream:
                return FileContent(stream.read(max_bytes))
        except KeyError:
            return FileContent(None)
        except _BROKEN_MEMBER as error:
            reason = str(error) or type(error).__name__
            return FileContent(None, error=f"{reason}, in {archive_uri.rsplit('/', 1)[-1]}")
        except ValueError as error:  # an offset beyond the file
            return FileContent(None, error=f"{error}, in {archive_uri.rsplit('/', 1)[-1]}")
        except OSError as error:
            raise _read_error(f"{name} in {archive_uri}", error) from error


def find_folder(root: str, *names: str) -> str | None:
    """Return the URI of the first of these folders that is under root, or in a zip in root.

    Raises:
        StorageError: none is found, and a zip cannot be read.
    """
    for name in names:
        uri = storage.join(root, name)
        if exists(uri) if _split(uri)[0] else storage.is_folder(uri):
            return uri
    return _find_in_zips(root, names, lambda name, member: member.startswith(f"{name}/"))


def find_file(root: str, *names: str) -> str | None:
    """Return the URI of the first of these files that is under root, or in a zip in root.

    Raises:
        StorageError: none is found, and a zip cannot be read.
    """
    for name in names:
        uri = storage.join(root, name)
        if storage.exists(uri):
            return uri
    return _find_in_zips(root, names, str.__eq__)


def exists(uri: str) -> bool:
    """Tell whether a file or folder exists, also in a zip."""
    archive_uri, inner = _split(uri)
    if not archive_uri:
        return storage.exists(uri)
    if not storage.exists(archive_uri):
        return False
    members = _list_members(archive_uri)
    return inner in members or any(member.startswith(f"{inner}/") for member in members)


def read_file(uri: str) -> bytes:
    """Read a whole file.

    Raises:
        StorageError: it is missing or cannot be read.
    """
    archive_uri, inner = _split(uri)
    if not archive_uri:
        return storage.read_bytes(uri)
    with _open_zip(archive_uri) as archive:
        try:
            member = archive.getinfo(inner)
            if member.file_size > _MAX_RATIO * max(member.compress_size, _SMALL_BYTES):
                raise StorageError(
                    f"{inner} in {archive_uri} would unpack to {member.file_size} bytes from "
                    f"{member.compress_size}, more than {_MAX_RATIO} times as many: no annotations "
                    "do. Download it again, or unpack it and name the file"
                )
            return archive.read(inner)
        except (KeyError, OSError, ValueError, *_BROKEN_MEMBER) as error:
            raise StorageError(
                f"cannot read {inner} in {archive_uri}: {error}; {_RETRY}"
            ) from error


def list_files(uri: str, *, recursive: bool = True) -> dict[str, int]:
    """Return the sizes of a folder's files by name below it, sorted by name."""
    archive_uri, inner = _split(uri)
    if archive_uri:
        prefix = f"{inner}/" if inner else ""
        sizes = {
            name.removeprefix(prefix): size
            for name, size in _list_members(archive_uri).items()
            if name.startswith(prefix)
        }
    else:
        start = len(storage.resolve(uri)[1])
        sizes = {
            info.path[start:].lstrip("/"): info.size
            for info in storage.list_folder(uri, recursive=recursive)
            if info.type == pafs.FileType.File
        }
    return {name: sizes[name] for name in sorted(sizes) if recursive or "/" not in name}


def list_entries(root: str) -> list[str]:
    """List the files and folders directly in a folder; folders end with a slash."""
    return sorted(
        info.base_name + ("/" if info.type == pafs.FileType.Directory else "")
        for info in storage.list_folder(root)
    )


def escapes_folder(name: str) -> bool:
    """Tell whether a file name points out of its folder on any system."""
    return bool(describe_unsafe_name(name))


def describe_unsafe_name(name: str) -> str:
    """Say why a file name is not one under a folder on every system; "" if it is."""
    if name.startswith("/"):
        return "it starts with a slash; it must be relative to the folder"
    if start := re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", name):
        return f"it starts with {start[0]!r}; it must be relative to the folder"
    if ".." in re.split(r"[/\\]", name):
        return "it has '..'; it must stay under the folder"
    if "\\" in name:
        return f"it has a backslash, as on Windows; write {name.replace(chr(92), '/')!r}"
    return "it has a zero byte" if "\0" in name else ""


def _split(uri: str) -> tuple[str, str]:
    """Split a URI into archive and member; the archive is "" outside of zips."""
    before, mark, after = uri.partition(_INSIDE)
    return (before + ".zip", after.strip("/")) if mark else ("", uri)


def _find_in_zips(root: str, names: Sequence[str], fits: Callable[[str, str], bool]) -> str | None:
    broken = None
    for archive_uri in storage.list_files(root, suffix=".zip"):
        try:
            members = _list_members(archive_uri)
        except StorageError as error:
            # It may be another download in progress.
            broken = broken or error
            continue
        for name in names:
            if any(fits(name, member) for member in members):
                return f"{archive_uri}!/{name}"
    if broken is not None:
        raise broken
    return None


def _list_members(archive_uri: str) -> dict[str, int]:
    with _open_zip(archive_uri) as archive:
        return {
            each.filename: each.file_size
            for each in archive.infolist()
            if not each.filename.endswith("/")
        }


@contextmanager
def _open_zip(archive_uri: str) -> Iterator[zipfile.ZipFile]:
    with storage.open_file(archive_uri) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except _BROKEN_ZIP as error:
            foreign = ""
            with suppress(OSError):
                stream.seek(0)
                foreign = describe_foreign_file(stream.read(128))
            reason = f": {foreign}" if foreign else f" ({error}); {_RETRY}"
            raise StorageError(f"{archive_uri} is not a complete zip{reason}") from error
        unsafe = [name for name in archive.namelist() if escapes_folder(name)]
        if unsafe and all("a backslash" in describe_unsafe_name(name) for name in unsafe):
            raise StorageError(
                f"{archive_uri} holds {len(unsafe)} names with a backslash, such as {unsafe[0]!r}, "
                "which some tools of Windows write. Unpack it there and zip it again, with forward "
                "slashes"
            )
        if unsafe:
            raise StorageError(
                f"{archive_uri} holds names that point out of its folder ({len(unsafe)}, such as "
                f"{unsafe[0]!r}). No official archive does; nothing was read. Download it again"
            )
        with archive:
            yield archive


def _read(fs: pafs.FileSystem, folder: str, name: str, *, max_bytes: int) -> FileContent:
    # Not joined to the URI: a name may contain what a URI parses as a query.
    path = f"{folder}/{name}"
    try:
        return FileContent(_read_bytes(fs, path, max_bytes))
    except FileNotFoundError:
        return FileContent(None)
    except OSError as error:
        # A failing disk or network must not look like missing images.
        if fs.get_file_info(path).type == pafs.FileType.Directory:
            return FileContent(None)
        raise _read_error(path, error) from error


def _read_bytes(fs: pafs.FileSystem, path: str, max_bytes: int) -> bytes:
    with fs.open_input_file(path) as stream:
        return bytes(stream.read(max_bytes))


def _read_error(what: str, error: OSError) -> StorageError:
    cause = str(error).splitlines()[0][:300]
    return StorageError(
        f"cannot read {what}: {cause}. Fix that and run the same command again; "
        "finished shards are kept"
    )
