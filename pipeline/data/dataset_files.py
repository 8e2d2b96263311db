"""Files of a data set as it was downloaded: in folders, or in zips that nobody has unpacked.

A place is a path or URI, or ARCHIVE.zip!/MEMBER. A member is read where it lies and never written
to a disk, so its name cannot lead out of a folder; an archive with such names is refused all the
same, because nobody distributes one in good faith.
"""

import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pyarrow.fs as pafs

from pipeline import storage
from pipeline.errors import StorageError

_INSIDE = ".zip!"

_BROKEN_MEMBER = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What zipfile raises on a wrong checksum, cut off data, an unknown method and a password."""

_NO_ZIP = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error)
"""What opening a file that is no whole zip may raise."""


class Found(NamedTuple):
    """What became of reading a file."""

    data: bytes | None
    """None where the file is not there, or a fault is told."""
    fault: str = ""


class Files:
    """Reads files by mount and name from any number of threads; holds the zips open it has met."""

    def __init__(self) -> None:
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._open = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def read(self, mount: str, name: str, *, most_bytes: int) -> Found:
        """Read a file, or so much of it.

        Args:
            mount: place of a folder.
            name: the file's name below it.
            most_bytes: where to stop.

        Raises:
            StorageError: it cannot be read, for another reason than that it is not there.
        """
        archive_uri, inner = _split(mount)
        if not archive_uri:
            return _read(*storage.resolve(mount), name, most_bytes=most_bytes)
        with self._lock:
            if archive_uri not in self._archives:
                self._archives[archive_uri] = self._open.enter_context(_opened(archive_uri))
        archive = self._archives[archive_uri]
        try:
            with archive.open(f"{inner}/{name}" if inner else name) as stream:
                return Found(stream.read(most_bytes))
        except KeyError:
            return Found(None)
        except _BROKEN_MEMBER as error:
            told = str(error) or type(error).__name__
            return Found(None, fault=f"{told}, in {_last(archive_uri)}")
        except OSError as error:
            raise _unreadable(f"{name} in {archive_uri}", error) from error


def find_folder(root: str, *names: str) -> str | None:
    """Give the place of the first of these folders that is under root, or in a zip in root.

    Raises:
        StorageError: it is not there, but a zip is that cannot be read.
    """
    for name in names:
        place = storage.join(root, name)
        if _is_folder(place):
            return place
    return _find_in_zips(root, names, lambda name, each: each.startswith(f"{name}/"))


def find_file(root: str, *names: str) -> str | None:
    """Give the place of the first of these files that is under root, or in a zip in root.

    Raises:
        StorageError: it is not there, but a zip is that cannot be read.
    """
    for name in names:
        place = storage.join(root, name)
        if storage.exists(place):
            return place
    return _find_in_zips(root, names, str.__eq__)


def is_there(place: str) -> bool:
    """Tell whether a file or folder is there, in a zip too."""
    archive_uri, inner = _split(place)
    if not archive_uri:
        return storage.exists(place)
    if not storage.exists(archive_uri):
        return False
    members = _sizes(archive_uri)
    return inner in members or any(member.startswith(f"{inner}/") for member in members)


def read_file(place: str) -> bytes:
    """Read a whole file.

    Raises:
        StorageError: it is missing or cannot be read.
    """
    archive_uri, inner = _split(place)
    if not archive_uri:
        return storage.read_bytes(place)
    with _opened(archive_uri) as archive:
        try:
            return archive.read(inner)
        except (KeyError, *_BROKEN_MEMBER) as error:
            raise StorageError(
                f"cannot read {inner} in {archive_uri}: {error}; {_AGAIN}"
            ) from error


def list_files(place: str, *, recursive: bool = True) -> dict[str, int]:
    """Give the sizes of a folder's files by their names below it, in order of name."""
    archive_uri, inner = _split(place)
    if archive_uri:
        prefix = f"{inner}/" if inner else ""
        found = {
            name.removeprefix(prefix): size
            for name, size in _sizes(archive_uri).items()
            if name.startswith(prefix)
        }
    else:
        start = len(storage.resolve(place)[1])
        found = {
            info.path[start:].lstrip("/"): info.size
            for info in storage.list_folder(place, recursive=recursive)
            if info.type == pafs.FileType.File
        }
    return {name: found[name] for name in sorted(found) if recursive or "/" not in name}


def list_names(root: str) -> list[str]:
    """Give the names of the files and folders directly in a folder, folders with a slash."""
    return sorted(
        info.base_name + ("/" if info.type == pafs.FileType.Directory else "")
        for info in storage.list_folder(root)
    )


def leaves_folder(name: str) -> bool:
    """Tell whether a file name points, or could on some system point, out of its folder."""
    return (
        name.startswith("/")
        or "\\" in name
        or "\0" in name
        or re.match(r"^[A-Za-z][A-Za-z0-9+.-]*:", name) is not None
        or ".." in name.split("/")
    )


_AGAIN = "was it downloaded whole? Download it again, or unpack it and look"


def _split(place: str) -> tuple[str, str]:
    """Part a place into its archive and the name inside; "" where it is in none."""
    before, mark, after = place.partition(_INSIDE)
    return (before + ".zip", after.strip("/")) if mark else ("", place)


def _last(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def _find_in_zips(root: str, names: Sequence[str], fits: Callable[[str, str], bool]) -> str | None:
    broken = None
    for archive_uri in storage.list_files(root, suffix=".zip"):
        try:
            members = _sizes(archive_uri)
        except StorageError as error:
            # It may be another download that is still under way.
            broken = broken or error
            continue
        for name in names:
            if any(fits(name, member) for member in members):
                return f"{archive_uri}!/{name}"
    if broken is not None:
        raise broken
    return None


def _sizes(archive_uri: str) -> dict[str, int]:
    with _opened(archive_uri) as archive:
        return {each.filename: each.file_size for each in archive.infolist() if not each.is_dir()}


@contextmanager
def _opened(archive_uri: str) -> Iterator[zipfile.ZipFile]:
    with storage.open_file(archive_uri) as stream:
        try:
            archive = zipfile.ZipFile(stream)
        except _NO_ZIP as error:
            raise StorageError(f"{archive_uri} is no whole zip ({error}); {_AGAIN}") from error
        strange = [name for name in archive.namelist() if leaves_folder(name)]
        if strange:
            raise StorageError(
                f"{archive_uri} holds {len(strange)} names that lead out of its folder, such as "
                f"{strange[0]!r}: no official archive does. Nothing of it was read"
            )
        with archive:
            yield archive


def _is_folder(place: str) -> bool:
    return is_there(place) if _split(place)[0] else storage.is_folder(place)


def _read(fs: pafs.FileSystem, folder: str, name: str, *, most_bytes: int) -> Found:
    # Not joined to the URI: a name may hold what would be a query there.
    path = f"{folder}/{name}"
    try:
        return Found(_open(fs, path, most_bytes))
    except FileNotFoundError:
        return Found(None)
    except OSError as error:
        # A disk or network that fails must not look like a data set that lacks images.
        if fs.get_file_info(path).type == pafs.FileType.Directory:
            return Found(None)
        raise _unreadable(path, error) from error


def _unreadable(what: str, error: OSError) -> StorageError:
    cause = str(error).splitlines()[0][:300]
    return StorageError(
        f"cannot read {what}: {cause}; mend that and run the same command again: "
        "finished shards are kept"
    )


def _open(fs: pafs.FileSystem, path: str, most_bytes: int) -> bytes:
    with fs.open_input_file(path) as stream:
        return bytes(stream.read(most_bytes))
