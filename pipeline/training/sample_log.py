"""The list of trained samples: one line for each sample of each step.

Every worker logs the images of its steps. At a checkpoint rank 0 gathers these logs, writes them as
one file for the steps since the previous checkpoint, and only then writes the checkpoint. A resume
deletes the files from its first step on, so each step is in the list once, and a run with a crash
has the same list as a run without.

With crops or copy-paste, a line also has the number of objects that they hide, which are dropped.
"""

import csv
import hashlib
import io
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv_table
import torch
from torch import Tensor

from pipeline import checksums, storage
from pipeline.data.batch import Batch
from pipeline.errors import TrainingError
from pipeline.text import format_count
from pipeline.training.step import WorkerContext, gather_rows

_log = logging.getLogger(__name__)

_HEADER = ["step", "epoch", "lane", "image_id", "dropped"]
"""The last one only where objects may be dropped."""


def samples_uri(run_uri: str) -> str:
    """Return the folder of a run's sample lists."""
    return storage.join(run_uri, "samples")


def delete_from_step(run_uri: str, *, step: int) -> None:
    """Delete the lists that start at or after a step."""
    for file in storage.list_files(samples_uri(run_uri), suffix=".csv"):
        if _parse_first_step(file) >= step:
            storage.remove(file)


def merge_sample_lists(run_uri: str, *, steps: int, global_batch: int) -> tuple[str, str]:
    """Join the lists of a finished run into one file, and check that it is complete.

    Returns:
        The file and the SHA-256 of its content, to compare two runs.

    Raises:
        TrainingError: a step or a lane is missing or appears twice.
    """
    header, bodies, rows, dropped, is_complete = b"", [], 0, 0, True
    for file in storage.list_files(samples_uri(run_uri), suffix=".csv"):
        # Not as Python's numbers, of which millions take gigabytes.
        data = storage.read_bytes(file)
        columns = [each.to_numpy() for each in csv_table.read_csv(pa.BufferReader(data)).columns]
        order = rows + np.arange(len(columns[0]))
        is_complete &= bool((columns[0] == order // global_batch).all())
        is_complete &= bool((columns[2] == order % global_batch).all())
        rows += len(order)
        dropped += sum(int(each.sum()) for each in columns[4:])
        header, _, body = data.partition(b"\n")
        bodies.append(body)
    if not is_complete or rows != steps * global_batch:
        raise TrainingError(
            f"{samples_uri(run_uri)}: the list of trained samples has {rows} rows, and needs "
            f"exactly one for each of {global_batch} lanes in each of {steps} steps: a file is "
            "missing or was changed. Train again under another --name to get a complete list."
        )
    if dropped:
        count = format_count(dropped, "object")
        _log.info("data: crops and pasted objects hid %s, which were dropped", count)
    data = b"".join([header, b"\n", *bodies])
    uri = storage.join(run_uri, "samples.csv")
    checksums.write_file(uri, data)
    return uri, hashlib.sha256(data).hexdigest()


class SampleLog:
    """The samples that one worker trained since the last checkpoint."""

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self._rows: list[Tensor] = []

    def add(self, microbatches: Sequence[Batch], *, step: int, epoch: int) -> None:
        """Log the images of a step."""
        lanes = torch.cat([batch.lanes for batch in microbatches])
        images = torch.cat([batch.image_id for batch in microbatches])
        columns = [torch.full_like(lanes, step), torch.full_like(lanes, epoch), lanes, images]
        dropped = [batch.dropped for batch in microbatches if batch.dropped is not None]
        if dropped:
            columns.append(torch.cat(dropped))
        self._rows.append(torch.stack(columns, dim=1))

    def write(self, run_uri: str) -> None:
        """Gather the logs of all workers on rank 0, write them, and start over."""
        mine = torch.cat(self._rows).to(self._worker.device)
        self._rows = []
        table = gather_rows(mine, worker=self._worker).flatten(0, 1).cpu()
        if self._worker.rank != 0:
            return
        rows = sorted(table.tolist(), key=lambda row: (row[0], row[2]))
        name = f"steps-{rows[0][0]:08d}-{rows[-1][0] + 1:08d}.csv"
        storage.write_bytes_atomic(storage.join(samples_uri(run_uri), name), _format_csv(rows))


def _parse_first_step(file: str) -> int:
    return int(file.rsplit("/", 1)[-1].split("-")[1])


def _format_csv(rows: list[list[int]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER[: len(rows[0])] if rows else _HEADER)
    writer.writerows(rows)
    return text.getvalue().encode()
