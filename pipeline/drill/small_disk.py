"""A small disk, which can be filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import DrillSkippedError


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk with place for a few checkpoints, for the block.

    Raises:
        DrillSkippedError: this user may not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=800m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        raise DrillSkippedError("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(filler: Path) -> None:
    """Write a file that takes the rest of its disk."""
    block = bytes(2**20)
    with filler.open("wb", buffering=0) as stream:
        while True:
            try:
                stream.write(block)
            except OSError:
                if len(block) == 1:
                    return
                block = b"\0"
