"""Write files with their SHA-256 beside them, and check it wherever they are read.

A folder's file SHA256SUMS has a line for each file, as `sha256sum -c SHA256SUMS` reads it. Files
without a line are read unchecked: those of users and of earlier versions, and a run's recipe, which
people edit. PNGs and safetensors have checksums of their own, which `label_png.check_chunks` and
`weights.read_weights` verify.
"""

import hashlib
import re
from collections.abc import Mapping

from pipeline import storage
from pipeline.errors import StorageError

SUMS_FILE = "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_file(uri: str, data: bytes) -> None:
    """Write a whole file atomically, and its SHA-256; one process at a time writes to a folder.

    Raises:
        StorageError: a file cannot be written.
    """
    folder, name = _split(uri)
    sums = read_sums(folder)
    if sums.pop(name, ""):
        # A crash in between leaves a file without a checksum, not with a wrong one.
        write_sums(folder, sums)
    storage.write_bytes_atomic(uri, data)
    write_sums(folder, {**sums, name: hash_bytes(data)})


def read_file(uri: str) -> bytes:
    """Read a whole file, and check its SHA-256 if the folder has it.

    Raises:
        StorageError: it cannot be read, or was changed after it was written.
    """
    data = storage.read_bytes(uri)
    check(uri, data, read_sums(_split(uri)[0]))
    return data


def check(uri: str, data: bytes, sums: Mapping[str, str]) -> None:
    """Check the content of a file against the lines of its folder.

    Raises:
        StorageError: it was changed after it was written.
    """
    digest, expected = hash_bytes(data), sums.get(_split(uri)[1])
    if expected not in {None, digest}:
        raise StorageError(
            f"{uri} was changed after it was written (SHA-256 {digest}, but {expected} in "
            f"{SUMS_FILE}). Restore it from a copy, or delete it and run the command that wrote it "
            f"again. If the change is meant, delete its line in {SUMS_FILE}"
        )


def find_changed(folder: str) -> list[str]:
    """Return the files of a folder that were changed after they were written, or are missing."""
    return [
        name
        for name, digest in read_sums(folder).items()
        if not storage.exists(uri := storage.join(folder, name))
        or hash_bytes(storage.read_bytes(uri)) != digest
    ]


def read_sums(folder: str) -> dict[str, str]:
    """Read the SHA-256 of each file from a folder's lines; {} if it has none."""
    uri = storage.join(folder, SUMS_FILE)
    if not storage.exists(uri):
        return {}
    lines = storage.read_bytes(uri).decode(errors="replace").splitlines()
    return {found[2]: found[1] for line in lines if (found := _LINE.fullmatch(line))}


def write_sums(folder: str, sums: Mapping[str, str]) -> None:
    """Write the lines of a folder."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    storage.write_bytes_atomic(storage.join(folder, SUMS_FILE), text.encode())


def hash_bytes(data: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _split(uri: str) -> tuple[str, str]:
    folder, _, name = storage.absolute(uri).rpartition("/")
    return folder, name
