"""The list of what was really trained: one line for each sample of each step.

Every worker notes the images that its steps trained. At a checkpoint the notes meet on rank 0,
which writes them as one file for the steps since the checkpoint before, and only then writes the
checkpoint. After a crash the files that start at or after the resumed step are rewritten, so each
step is in the list once, and the list of a run with a crash equals that of a run without.
"""

import csv
import hashlib
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline import storage
from pipeline.data.batch import Batch
from pipeline.errors import TrainingError
from pipeline.training.step import World, gather_rows

_HEADER = ["step", "epoch", "lane", "image_id"]


def samples_uri(run_uri: str) -> str:
    """Name the folder of a run's sample lists."""
    return storage.join(run_uri, "samples")


def forget_from(run_uri: str, *, step: int) -> None:
    """Delete what was noted at or after a step that is about to be trained again."""
    for file in storage.list_files(samples_uri(run_uri), suffix=".csv"):
        if _first_step(file) >= step:
            storage.remove(file)


def merge(run_uri: str, *, steps: int, global_batch: int) -> tuple[str, str]:
    """Join the lists of a finished run into one file, and check it.

    Returns:
        The file and the SHA-256 of its content, by which two runs are compared.

    Raises:
        TrainingError: a step is missing or twice, or lacks a lane.
    """
    rows: list[list[int]] = []
    for file in storage.list_files(samples_uri(run_uri), suffix=".csv"):
        text = storage.read_bytes(file).decode()
        rows += [[int(cell) for cell in row] for row in list(csv.reader(io.StringIO(text)))[1:]]
    expected = [(step, lane) for step in range(steps) for lane in range(global_batch)]
    if [(row[0], row[2]) for row in rows] != expected:
        raise TrainingError(
            f"{samples_uri(run_uri)}: the list of trained samples has {len(rows)} rows and should "
            f"have each of {steps} steps with {global_batch} lanes once; a file is missing or was "
            "changed. Train again under another --name to have a complete list."
        )
    data = _as_csv(rows)
    uri = storage.join(run_uri, "samples.csv")
    storage.write_bytes_atomic(uri, data)
    return uri, hashlib.sha256(data).hexdigest()


class SampleLog:
    """What one worker trained since the last checkpoint."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rows: list[Tensor] = []

    def add(self, passes: Sequence[Batch], *, step: int, epoch: int) -> None:
        """Note the images of a trained step."""
        lanes = torch.cat([one.lanes for one in passes])
        images = torch.cat([one.image_id for one in passes])
        place = torch.tensor([step, epoch]).expand(len(lanes), 2)
        self._rows.append(torch.cat([place, torch.stack([lanes, images], dim=1)], dim=1))

    def write(self, run_uri: str) -> None:
        """Bring all workers' notes together and let rank 0 write them; start over."""
        mine = torch.cat(self._rows).to(self._world.device)
        self._rows = []
        table = gather_rows(mine, world=self._world).flatten(0, 1).cpu()
        if self._world.rank != 0:
            return
        rows = sorted(table.tolist(), key=lambda row: (row[0], row[2]))
        name = f"steps-{rows[0][0]:08d}-{rows[-1][0] + 1:08d}.csv"
        storage.write_bytes_atomic(storage.join(samples_uri(run_uri), name), _as_csv(rows))


def _first_step(file: str) -> int:
    return int(file.rsplit("/", 1)[-1].split("-")[1])


def _as_csv(rows: list[list[int]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(rows)
    return text.getvalue().encode()
