"""Assign samples to training steps as a pure function of seed, row groups and global batch.

Each epoch is a seeded permutation of all rows, and the epochs form one endless stream. The stream
is cut into blocks of n rows; G consecutive blocks (G is the global batch) form a window, one block
per lane. Step k of a window trains row k of every lane, so a batch mixes G distant parts of the
data set. A window may span two epochs; no row is dropped or duplicated.

With repeats (pipeline/data/repeat_factors.py), the k-th repetitions in a row group form a layer,
which is shuffled like a row group of its own, so repetitions of one row are far apart.

With pairs, for copy-paste, two windows that follow one another are interleaved: step 2 k and step
2 k + 1 of the two train row k of the first and of the second. So each sample has a neighbor in its
lane that comes from another row group, chosen anew in every epoch, and both are read by the same
item. A partner from another lane of the same step would make each worker read the row groups of all
lanes.

Any step is computed from its number alone. Rank r of W owns lanes r, r + W, ..., so every W that
divides G trains the same global batches. n is the length of a row group, or less if there are fewer
rows than G row groups; each epoch is arranged so that blocks are whole row groups where possible.

    G global batch, W workers, n rows of a block
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
"""Rows of an item of encoded images: about 20 MB of COCO."""

ROWS_PER_CHAPTER = 320_000
"""Ray Data spends about 1.2 ms per item before the first batch: 3 s for 2,500 items of 128 rows."""

_MAX_ENTRIES = 100

# Purpose of a permutation; part of its seed.
_GROUPS, _BLOCKS, _ROWS = 1, 2, 3

_CACHED_EPOCHS = 4

_EPOCHS_AT_ONCE = 16
"""Epochs counted at a time when their lengths differ."""


class RowGroup(NamedTuple):
    """A row group of a shard, the smallest unit that is read."""

    shard_index: int
    row_group_index: int
    rows: int


class Chapter(NamedTuple):
    """Steps first_step to stop_step - 1, read as one Ray dataset.

    Every dataset keeps a Ray Data process alive until the run ends, so chapters are long. A resumed
    run should not read a long chapter from its start, so a chapter can be entered on the way.
    """

    name: str
    first_step: int
    stop_step: int
    entry_every: int
    """Steps between the entries of the chapter; first_step is the first entry."""

    def resume_at(self, first_step: int) -> "Chapter":
        """Return the rest of the chapter from the last entry at or before first_step."""
        steps = max(0, first_step - self.first_step) // self.entry_every * self.entry_every
        start = self.first_step + steps
        return self._replace(name=f"steps_{start:08d}", first_step=start)

    def entries(self) -> "tuple[Chapter, ...]":
        """Return the rest of the chapter from each of its entries."""
        starts = range(self.first_step, self.stop_step, self.entry_every)
        return tuple(self.resume_at(start) for start in starts)


class _Runs(NamedTuple):
    """The rows of one epoch in order, as runs of rows of a permuted layer."""

    layer: Ints
    start: Ints
    length: Ints
    stop: Ints
    """Rows of the epoch up to and including this run."""


class _Layers(NamedTuple):
    """The k-th repetitions of the rows of each row group, one layer for each group and k.

    The first layers are the row groups themselves, in order, with every row.
    """

    group: Ints
    repeat: Ints
    """k of each layer, from 0."""
    rows: Ints
    """Number of rows of each layer."""
    start: Ints
    """Index into `row` of the first row of each layer."""
    row: Ints | None
    """Index within the row group, of the rows of all layers, concatenated; None if each layer is a
    whole row group: of millions of rows, the indices would take hundreds of megabytes."""

    def locate(self, layer: int, index: Ints) -> Ints:
        """Return the index within the row group of rows of a layer."""
        return index if self.row is None else self.row[self.start[layer] + index]


class _Epoch(NamedTuple):
    """The layers of an epoch, and the order in which it trains their rows."""

    layers: _Layers
    runs: _Runs


@dataclass(frozen=True)
class Item:
    """The rows that one task reads: some steps of one rank, by step, then by lane."""

    step: Ints
    step_epoch: Ints
    """Epochs completed when the step starts."""
    lane: Ints
    epoch: Ints
    """Epoch of the row; it differs from step_epoch where a window spans two epochs."""
    shard_index: Ints
    row_group_index: Ints
    row: Ints
    """Index within the row group."""
    repeat: Ints
    """Repetition of the row within its epoch, from 0; not ordered by step."""

    def to_bytes(self) -> bytes:
        """Serialize the item for a Ray task."""
        columns = [getattr(self, column.name) for column in fields(self)]
        return np.stack(columns).astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, packed: bytes) -> "Item":
        """Deserialize what to_bytes returned."""
        return cls(
            *np.frombuffer(packed, dtype="<i8").astype(np.int64).reshape(len(fields(cls)), -1)
        )


def chapters(*, steps: int, chapter_steps: int, global_batch: int) -> tuple[Chapter, ...]:
    """Cut a run into a few chapters at fixed steps, independent of the step it starts at.

    Args:
        steps: steps of the whole run.
        chapter_steps: steps between the points at which a run may resume.
        global_batch: samples per step.
    """
    entry_every = chapter_steps * -(-steps // (chapter_steps * _MAX_ENTRIES))
    max_steps = max(1, ROWS_PER_CHAPTER // global_batch)
    if entry_every > max_steps:
        entry_every = -(-entry_every // -(-entry_every // max_steps))
    length = max_steps // entry_every * entry_every or entry_every
    return tuple(
        Chapter(f"steps_{first:08d}", first, min(first + length, steps), entry_every)
        for first in range(0, steps, length)
    )


def extend_to_pairs(first_step: int, stop_step: int, *, pairs: bool) -> tuple[int, int]:
    """Extend a range of steps to whole pairs 2 k and 2 k + 1; without pairs, keep it."""
    return (first_step // 2 * 2, -(-stop_step // 2) * 2) if pairs else (first_step, stop_step)


class Plan:
    """The order of all samples over all epochs; stateless except for a cache of epoch orders.

    Args:
        row_groups: of the split.
        seed: of the recipe.
        global_batch: samples per step.
        repeats: of the rows, in the order of row groups; None trains each row once an epoch.
        pairs: interleave two windows, and keep steps 2 k and 2 k + 1 in one item.

    Raises:
        DatasetError: the split has no rows.
    """

    def __init__(
        self,
        row_groups: Sequence[RowGroup],
        *,
        seed: int,
        global_batch: int,
        repeats: Repeats | None = None,
        pairs: bool = False,
    ) -> None:
        self.row_groups = tuple(group for group in row_groups if group.rows > 0)
        self.seed = seed
        self.global_batch = global_batch
        self._rows = np.array([group.rows for group in self.row_groups], dtype=np.int64)
        self.rows = int(self._rows.sum())
        if self.rows == 0:
            raise DatasetError("the split has no rows; training needs at least one sample")
        self.lane_rows = max(1, min(int(self._rows.max()), self.rows // global_batch))
        self.pairs = pairs
        self._span = (1 + pairs) * self.lane_rows
        """Steps that read a row group of each lane, or two of them interleaved."""
        self._repeats = repeats
        self._starts = [0]
        self._epochs: dict[int, _Epoch] = {}

    def epoch_of(self, step: int) -> int:
        """Return the number of epochs completed when the step starts."""
        return self._locate(step * self.global_batch)[0]

    def items(
        self,
        first_step: int,
        stop_step: int,
        *,
        world_size: int = 1,
        rows_per_item: int = ROWS_PER_ITEM,
    ) -> Iterator[Item]:
        """Yield the items of steps first_step to stop_step - 1, by step, then by rank.

        Items come in rounds: one per rank, of the same steps and the same number of rows. With
        pairs, the steps go from an even one to an odd one: there may be one more at both ends.

        Args:
            first_step: any step.
            stop_step: the step after the last one.
            world_size: workers that share each global batch.
            rows_per_item: approximate rows of an item; larger items need fewer reads.

        Raises:
            TrainingError: world_size does not divide the global batch.
        """
        if self.global_batch % world_size:
            raise TrainingError(
                f"{world_size} workers cannot share a global batch of {self.global_batch}: "
                "the number of workers must divide it"
            )
        grid = self._steps_per_item(rows_per_item * world_size // self.global_batch)
        first, stop_step = extend_to_pairs(first_step, stop_step, pairs=self.pairs)
        while first < stop_step:
            stop = min(stop_step, self._next_cut(first, grid))
            cells = self._cells(first, stop)
            for rank in range(world_size):
                yield self._item(
                    cells[:, :, rank::world_size], first_step=first, rank=rank, stride=world_size
                )
            first = stop

    def _steps_per_item(self, wanted: int) -> int:
        """Round to whole spans or equal parts of one, so that row groups are read few times."""
        if wanted >= self._span:
            return wanted // self._span * self._span
        parts = -(-self._span // max(1 + self.pairs, wanted))
        return extend_to_pairs(0, -(-self._span // parts), pairs=self.pairs)[1]

    def _next_cut(self, step: int, grid: int) -> int:
        if grid >= self._span:
            return (step // grid + 1) * grid
        start = step // self._span * self._span
        return min(start + self._span, start + ((step - start) // grid + 1) * grid)

    def _cells(self, first_step: int, stop_step: int) -> Ints:
        """Return (epoch, group, row, repeat) of every (step, lane): shape (4, steps, G)."""
        n, G, k = self.lane_rows, self.global_batch, 1 + self.pairs
        spans = []
        for span in range(first_step // self._span, -(-stop_step // self._span)):
            rows = self._stream(span * G * self._span, (span + 1) * G * self._span)
            by_step = rows.reshape(4, k, G, n).transpose(0, 3, 1, 2)
            spans.append(by_step.reshape(4, self._span, G))
        offset = first_step // self._span * self._span
        return np.concatenate(spans, axis=1)[:, first_step - offset : stop_step - offset]

    def _item(self, cells: Ints, *, first_step: int, rank: int, stride: int) -> Item:
        _, steps, lanes = cells.shape
        epoch, group, row, repeat = cells.reshape(4, -1)
        groups = np.array([group[:2] for group in self.row_groups], dtype=np.int64)
        step = first_step + np.arange(steps, dtype=np.int64)
        step_epoch = [self.epoch_of(int(each)) for each in step]
        return Item(
            step=np.repeat(step, lanes),
            step_epoch=np.repeat(np.array(step_epoch, dtype=np.int64), lanes),
            lane=np.tile(rank + stride * np.arange(lanes, dtype=np.int64), steps),
            epoch=epoch,
            shard_index=groups[group, 0],
            row_group_index=groups[group, 1],
            row=row,
            repeat=repeat,
        )

    def _stream(self, first: int, stop: int) -> Ints:
        """Return (epoch, group, row, repeat) of rows first to stop - 1 of the endless stream."""
        parts: list[Ints] = []
        while first < stop:
            epoch, offset = self._locate(first)
            layers, runs = self._epoch(epoch, start=first - offset)
            end = min(offset + stop - first, int(runs.stop[-1]))
            for run in range(
                int(np.searchsorted(runs.stop, offset, side="right")),
                int(np.searchsorted(runs.stop, end, side="left")) + 1,
            ):
                run_first = runs.stop[run] - runs.length[run]
                low, high = np.clip((offset, end), run_first, runs.stop[run]) - run_first
                layer, start = int(runs.layer[run]), runs.start[run]
                order = permutation(int(layers.rows[layer]), self.seed, epoch, _ROWS, layer)
                part = np.empty((4, high - low), dtype=np.int64)
                part[0], part[1], part[3] = epoch, layers.group[layer], layers.repeat[layer]
                part[2] = layers.locate(layer, order[start + low : start + high])
                parts.append(part)
            first += end - offset
        return np.concatenate(parts, axis=1)

    def _locate(self, row: int) -> tuple[int, int]:
        """Return the epoch of a row of the stream, and its index in the epoch."""
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
        groups, starts = np.arange(len(self._rows)), np.cumsum(self._rows) - self._rows
        if self._repeats is None:
            return _Layers(groups, np.zeros_like(groups), self._rows, starts, None)
        group = np.repeat(groups, self._rows)
        row = np.arange(self.rows) - np.repeat(starts, self._rows)
        return _split_layers(group, row, self._repeats.counts(self.seed, epoch))


def _split_layers(group: Ints, row: Ints, counts: Ints) -> _Layers:
    """Split the repeated rows of row groups into layers."""
    parts = []
    for repeat in range(int(counts.max())):
        kept = np.flatnonzero(counts > repeat)
        present, rows = np.unique(group[kept], return_counts=True)
        parts.append((present, np.full_like(present, repeat), rows, row[kept]))
    groups, repeats, lengths, rows = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _Layers(groups, repeats, lengths, np.cumsum(lengths) - lengths, rows)


def _epoch_order(rows: Ints, *, lane_rows: int, lead: int, seed: int, epoch: int) -> _Runs:
    """Order an epoch: `lead` rows that complete the previous epoch's block, whole blocks, the rest.

    A layer yields as many whole blocks as it holds. The short ends of all layers are joined into
    the lead, further blocks and the rest, so only these ends are read in parts.
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
        # Not enough short ends for the lead: break up one whole block.
        layer, start = np.append(layer, whole_layer[-1]), np.append(start, whole_start[-1])
        length = np.append(length, n)
        whole_layer, whole_start = whole_layer[:-1], whole_start[:-1]

    layer, start, length, block = _cut(layer, start, length, first=lead, every=n)
    joined = (int(length.sum()) - lead) // n
    blocks = len(whole_layer) + joined
    position = np.empty(blocks + 2, dtype=np.int64)
    position[permutation(blocks, seed, epoch, _BLOCKS) + 1] = np.arange(blocks)
    # The lead comes before all blocks, the rest after them.
    position[0], position[-1] = -1, blocks
    whole_position = position[1 + joined : 1 + joined + len(whole_layer)]
    joined_position = position[np.where(block == joined + 1, blocks + 1, block)]
    by_position = np.argsort(np.concatenate([whole_position, joined_position]), kind="stable")
    layer = np.concatenate([whole_layer, layer])[by_position]
    start = np.concatenate([whole_start, start])[by_position]
    length = np.concatenate([np.full(len(whole_layer), n), length])[by_position]
    return _Runs(layer, start, length, np.cumsum(length))


def _cut(
    layer: Ints, start: Ints, length: Ints, *, first: int, every: int
) -> tuple[Ints, Ints, Ints, Ints]:
    """Cut a sequence of runs at row `first` and then every `every` rows.

    Returns:
        layer, start and length of the cut runs, and the block of each: 0 before `first`, then 1,
        2, ...
    """
    stops = np.cumsum(length)
    total = int(stops[-1]) if len(stops) else 0
    cuts = np.unique(np.concatenate([[0], stops, np.arange(first, total, every)])).astype(np.int64)
    low, cut_length = cuts[:-1], np.diff(cuts)
    run = np.searchsorted(stops, low, side="right")
    cut_start = start[run] + low - (stops - length)[run]
    block = np.where(low < first, 0, 1 + (low - first) // every)
    return layer[run], cut_start, cut_length, block
