"""Which sample is trained in which step, as arithmetic on (seed, row groups, global batch).

An epoch is one seeded order of all rows, and the epochs follow each other in one endless stream
of rows. The stream is cut into lane loads of n rows, and G of these (G is the global batch) make
a window: step k of a window trains row k of each of its G lanes, so a batch mixes G far-apart
places of the data set. A window may begin with the last rows of one epoch and go on with the
next; no row is dropped and none comes twice.

Rows may repeat within an epoch (pipeline/data/repeat_factors.py): then the k-th repetitions of a row group
are a row group of their own, so that those of one row lie far apart.

Any step is found from its number alone. Rank r of W owns lanes r, r + W, ..., so every W that
divides G trains the same global batches. n is the length of a row group, or less where there are
fewer rows than G whole row groups; each epoch is laid out so that lane loads are whole row groups
wherever that can be.

    G global batch, W workers, n rows of a lane load
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.repeat_factors import Repeats
from pipeline.data.seeds import permutation
from pipeline.errors import DatasetError, TrainingError

Ints = NDArray[np.int64]

ROWS_PER_ITEM = 128
"""Rows of an item when encoded images travel: about 20 MB of COCO."""

ROWS_PER_CHAPTER = 320_000
"""Ray Data spends about 1.2 ms an item before the first batch: 3 s for 2,500 items of 128 rows."""

_MOST_ENTRIES = 100

# What a permutation is for; part of its seed.
_GROUPS, _LOADS, _ROWS = 1, 2, 3

_CACHED_EPOCHS = 4

_EPOCHS_AT_ONCE = 16
"""Where epochs differ in length, so many are counted when one more is needed."""


class RowGroup(NamedTuple):
    """A row group of a shard: the smallest thing that is read."""

    shard_index: int
    row_group_index: int
    rows: int


class Chapter(NamedTuple):
    """Steps first_step to stop_step - 1, run as one dataset.

    Each dataset keeps a process of Ray Data's alive until the run ends, so chapters are long; and a
    run that resumes must not read a long chapter from its start, so a chapter has entries.
    """

    name: str
    first_step: int
    stop_step: int
    entry_every: int
    """It can be entered at first_step and every so many steps after it."""

    def entered(self, first_step: int) -> "Chapter":
        """Return the rest of the chapter, from the last entry that leaves out no wanted step."""
        steps = max(0, first_step - self.first_step) // self.entry_every * self.entry_every
        start = self.first_step + steps
        return self._replace(name=f"steps_{start:08d}", first_step=start)

    def entries(self) -> "tuple[Chapter, ...]":
        """Return what `entered` can return."""
        starts = range(self.first_step, self.stop_step, self.entry_every)
        return tuple(self.entered(start) for start in starts)


class _Runs(NamedTuple):
    """One epoch's rows in order: runs of rows of a (permuted) layer."""

    layer: Ints
    start: Ints
    length: Ints
    stop: Ints
    """Rows of the epoch up to and with this run."""


class _Layers(NamedTuple):
    """The rows of row groups that are trained more than so many times in an epoch.

    The first layers are the row groups themselves, in order, with every row.
    """

    group: Ints
    repeat: Ints
    """How many times each row of the layer has come before in the layers of its row group."""
    rows: Ints
    """How many rows a layer has."""
    start: Ints
    """Where they begin in row."""
    row: Ints
    """Place within the row group, of the rows of all layers one after another."""


class _Epoch(NamedTuple):
    """What an epoch trains, and in which order."""

    layers: _Layers
    runs: _Runs


@dataclass(frozen=True)
class Item:
    """The rows of some steps of one rank, by step, then by lane: what one task reads."""

    step: Ints
    step_epoch: Ints
    """How many epochs have been trained when the step starts."""
    lane: Ints
    epoch: Ints
    """The epoch that the row belongs to; another than step_epoch where a window spans two."""
    shard_index: Ints
    row_group_index: Ints
    row: Ints
    """Place within the row group."""
    repeat: Ints
    """Which of the times that the row is trained in its epoch this is, from 0; not by step."""

    def to_bytes(self) -> bytes:
        """Pack the item for the way to a task."""
        columns = [getattr(self, column.name) for column in fields(self)]
        return np.stack(columns).astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, packed: bytes) -> "Item":
        """Undo to_bytes."""
        return cls(
            *np.frombuffer(packed, dtype="<i8").astype(np.int64).reshape(len(fields(cls)), -1)
        )


def chapters(*, steps: int, chapter_steps: int, global_batch: int) -> tuple[Chapter, ...]:
    """Cut a run into a few chapters at fixed steps, whatever step it starts at.

    Args:
        steps: steps of the whole run.
        chapter_steps: where a run may resume, every so many steps: chapters have entries there.
        global_batch: samples of a step.
    """
    entry_every = chapter_steps * -(-steps // (chapter_steps * _MOST_ENTRIES))
    most_steps = max(1, ROWS_PER_CHAPTER // global_batch)
    if entry_every > most_steps:
        entry_every = -(-entry_every // -(-entry_every // most_steps))
    length = most_steps // entry_every * entry_every or entry_every
    return tuple(
        Chapter(f"steps_{first:08d}", first, min(first + length, steps), entry_every)
        for first in range(0, steps, length)
    )


class Plan:
    """The order of all samples over all epochs. Holds no state but a cache of epoch orders."""

    def __init__(
        self,
        row_groups: Sequence[RowGroup],
        *,
        seed: int,
        global_batch: int,
        repeats: Repeats | None = None,
    ) -> None:
        self.row_groups = tuple(group for group in row_groups if group.rows > 0)
        self.seed = seed
        self.global_batch = global_batch
        self._rows = np.array([group.rows for group in self.row_groups], dtype=np.int64)
        self.rows = int(self._rows.sum())
        if self.rows == 0:
            raise DatasetError("the split has no rows; training needs at least one sample")
        self.lane_rows = max(1, min(int(self._rows.max()), self.rows // global_batch))
        self._repeats = repeats
        self._starts = [0]
        self._epochs: dict[int, _Epoch] = {}

    @classmethod
    def of(
        cls,
        row_groups: Sequence[RowGroup],
        *,
        seed: int,
        global_batch: int,
        repeats: Repeats | None = None,
    ) -> "Plan":
        """Plan a split.

        Args:
            row_groups: of the split.
            seed: the recipe's.
            global_batch: samples of a step.
            repeats: of its rows, in the order of row groups; None trains each once an epoch.

        Raises:
            DatasetError: the split has no rows.
        """
        return cls(row_groups, seed=seed, global_batch=global_batch, repeats=repeats)

    def epoch_of(self, step: int) -> int:
        """Return how many epochs have been trained when the step starts."""
        return self._place_of(step * self.global_batch)[0]

    def items(
        self,
        first_step: int,
        stop_step: int,
        *,
        world_size: int = 1,
        rows_per_item: int = ROWS_PER_ITEM,
    ) -> Iterator[Item]:
        """Yield the items of steps first_step to stop_step - 1, by step, then by rank.

        Every rank gets an item of the same steps and as many rows before any rank gets another.

        Args:
            first_step: where to begin; may lie anywhere.
            stop_step: the first step that is not wanted.
            world_size: workers that share each global batch.
            rows_per_item: about how many rows an item should have; more means fewer reads.

        Raises:
            TrainingError: world_size does not divide the global batch.
        """
        if self.global_batch % world_size:
            raise TrainingError(
                f"{world_size} workers cannot share a global batch of {self.global_batch}: "
                "the number of workers must divide it"
            )
        grid = self._steps_per_item(rows_per_item * world_size // self.global_batch)
        first = first_step
        while first < stop_step:
            stop = min(stop_step, self._next_cut(first, grid))
            cells = self._cells(first, stop)
            for rank in range(world_size):
                yield self._item(
                    cells[:, :, rank::world_size], first_step=first, rank=rank, stride=world_size
                )
            first = stop

    def _steps_per_item(self, wanted: int) -> int:
        """Round to whole windows, or to even parts of one: row groups are then read few times."""
        if wanted >= self.lane_rows:
            return wanted // self.lane_rows * self.lane_rows
        parts = -(-self.lane_rows // max(1, wanted))
        return -(-self.lane_rows // parts)

    def _next_cut(self, step: int, grid: int) -> int:
        if grid >= self.lane_rows:
            return (step // grid + 1) * grid
        window = step // self.lane_rows * self.lane_rows
        return min(window + self.lane_rows, window + ((step - window) // grid + 1) * grid)

    def _cells(self, first_step: int, stop_step: int) -> Ints:
        """Return (epoch, group, row, repeat) of every (step, lane): shape (4, steps, G)."""
        n, G = self.lane_rows, self.global_batch
        windows = []
        for window in range(first_step // n, -(-stop_step // n)):
            rows = self._stream(window * G * n, (window + 1) * G * n).reshape(4, G, n)
            windows.append(rows.transpose(0, 2, 1))
        offset = first_step // n * n
        return np.concatenate(windows, axis=1)[:, first_step - offset : stop_step - offset]

    def _item(self, cells: Ints, *, first_step: int, rank: int, stride: int) -> Item:
        _, steps, lanes = cells.shape
        epoch, group, row, repeat = cells.reshape(4, -1)
        places = np.array([group[:2] for group in self.row_groups], dtype=np.int64)
        step = first_step + np.arange(steps, dtype=np.int64)
        step_epoch = [self.epoch_of(int(each)) for each in step]
        return Item(
            step=np.repeat(step, lanes),
            step_epoch=np.repeat(np.array(step_epoch, dtype=np.int64), lanes),
            lane=np.tile(rank + stride * np.arange(lanes, dtype=np.int64), steps),
            epoch=epoch,
            shard_index=places[group, 0],
            row_group_index=places[group, 1],
            row=row,
            repeat=repeat,
        )

    def _stream(self, first: int, stop: int) -> Ints:
        """Return (epoch, group, row, repeat) of rows first to stop - 1 of the endless stream."""
        pieces: list[Ints] = []
        while first < stop:
            epoch, offset = self._place_of(first)
            layers, runs = self._epoch(epoch, start=first - offset)
            end = min(offset + stop - first, int(runs.stop[-1]))
            for run in range(
                int(np.searchsorted(runs.stop, offset, side="right")),
                int(np.searchsorted(runs.stop, end, side="left")) + 1,
            ):
                run_first = int(runs.stop[run] - runs.length[run])
                low, high = (
                    max(offset, run_first) - run_first,
                    min(end, int(runs.stop[run])) - run_first,
                )
                layer, start = int(runs.layer[run]), int(runs.start[run])
                order = permutation(int(layers.rows[layer]), self.seed, epoch, _ROWS, layer)
                rows = layers.row[layers.start[layer] + order[start + low : start + high]]
                piece = np.empty((4, high - low), dtype=np.int64)
                piece[0], piece[1], piece[2] = epoch, layers.group[layer], rows
                piece[3] = layers.repeat[layer]
                pieces.append(piece)
            first += end - offset
        return np.concatenate(pieces, axis=1)

    def _place_of(self, row: int) -> tuple[int, int]:
        """Return the epoch of a row of the stream, and its place in it."""
        if self._repeats is None:
            return divmod(row, self.rows)
        while self._starts[-1] <= row:
            known = len(self._starts) - 1
            lengths = self._repeats.lengths(self.seed, range(known, known + _EPOCHS_AT_ONCE))
            self._starts += (self._starts[-1] + np.cumsum(lengths)).tolist()
        epoch = bisect_right(self._starts, row) - 1
        return epoch, row - self._starts[epoch]

    def _epoch(self, epoch: int, *, start: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) >= _CACHED_EPOCHS:
                self._epochs.pop(min(self._epochs))
            layers = self._layers(epoch)
            runs = _epoch_order(
                layers.rows,
                lane_rows=self.lane_rows,
                lead=-start % self.lane_rows,
                seed=self.seed,
                epoch=epoch,
            )
            self._epochs[epoch] = _Epoch(layers, runs)
        return self._epochs[epoch]

    def _layers(self, epoch: int) -> _Layers:
        group = np.repeat(np.arange(len(self._rows)), self._rows)
        row = np.arange(self.rows) - np.repeat(np.cumsum(self._rows) - self._rows, self._rows)
        counts = (
            np.ones(self.rows, dtype=np.int64)
            if self._repeats is None
            else self._repeats.counts(self.seed, epoch)
        )
        return _layered(group, row, counts)


def _layered(group: Ints, row: Ints, counts: Ints) -> _Layers:
    """Part the rows of row groups by how many times they have come before."""
    parts = []
    for repeat in range(int(counts.max())):
        kept = np.flatnonzero(counts > repeat)
        present, rows = np.unique(group[kept], return_counts=True)
        parts.append((present, np.full_like(present, repeat), rows, row[kept]))
    groups, repeats, lengths, rows = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _Layers(groups, repeats, lengths, np.cumsum(lengths) - lengths, rows)


def _epoch_order(rows: Ints, *, lane_rows: int, lead: int, seed: int, epoch: int) -> _Runs:
    """Lay out an epoch: the lead rows that fill the open load of the epoch before, loads, the rest.

    A layer gives as many whole loads as it holds; what is left of all of them is joined into
    loads too, and gives the lead and the rest. So only these short ends are ever read in pieces.
    """
    n = lane_rows
    order = permutation(len(rows), seed, epoch, _GROUPS)
    counts = rows[order] // n
    whole_layer = np.repeat(order, counts)
    whole_start = n * (np.arange(len(whole_layer)) - np.repeat(np.cumsum(counts) - counts, counts))
    ends = rows[order] % n > 0
    layer, start = order[ends], (counts * n)[ends]
    length = (rows[order] % n)[ends]
    if length.sum() < lead:
        # Not enough short ends to fill the open load: break up one whole load.
        layer, start = np.append(layer, whole_layer[-1]), np.append(start, whole_start[-1])
        length = np.append(length, n)
        whole_layer, whole_start = whole_layer[:-1], whole_start[:-1]

    layer, start, length, load = _cut(layer, start, length, first=lead, every=n)
    joined = (int(length.sum()) - lead) // n
    loads = len(whole_layer) + joined
    place = np.empty(loads + 2, dtype=np.int64)
    place[permutation(loads, seed, epoch, _LOADS) + 1] = np.arange(loads)
    # place[0]: the lead, before everything; place[-1]: the rest, after everything.
    place[0], place[-1] = -1, loads
    whole_place = place[1 + joined : 1 + joined + len(whole_layer)]
    joined_place = place[np.where(load == joined + 1, loads + 1, load)]
    by_place = np.argsort(np.concatenate([whole_place, joined_place]), kind="stable")
    layer = np.concatenate([whole_layer, layer])[by_place]
    start = np.concatenate([whole_start, start])[by_place]
    length = np.concatenate([np.full(len(whole_layer), n), length])[by_place]
    return _Runs(layer, start, length, np.cumsum(length))


def _cut(
    layer: Ints, start: Ints, length: Ints, *, first: int, every: int
) -> tuple[Ints, Ints, Ints, Ints]:
    """Cut runs, taken as one sequence, at `first` and then at every so many rows.

    Returns:
        layer, start and length of the cut runs, and the number of the load that each belongs to:
        0 before `first`, then 1, 2, ...
    """
    stops = np.cumsum(length)
    total = int(stops[-1]) if len(stops) else 0
    cuts = np.unique(np.concatenate([[0], stops, np.arange(first, total, every)])).astype(np.int64)
    low, cut_length = cuts[:-1], np.diff(cuts)
    run = np.searchsorted(stops, low, side="right")
    cut_start = start[run] + low - (stops - length)[run]
    load = np.where(low < first, 0, 1 + (low - first) // every)
    return layer[run], cut_start, cut_length, load
