from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.plan import (
    ROWS_PER_CHAPTER,
    Item,
    Plan,
    RowGroup,
    chapters,
    extend_to_pairs,
)
from pipeline.data.repeat_factors import Repeats
from pipeline.errors import DatasetError, TrainingError

row_groups = st.lists(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=4
).map(
    lambda shards: [
        RowGroup(shard, index, rows)
        for shard, groups in enumerate(shards)
        for index, rows in enumerate(groups)
    ]
)
seeds = st.integers(0, 2**31 - 1)
batches = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16])


def cells(items):
    """Map (step, lane) to (epoch, shard, row group, row)."""
    found = {}
    for item in items:
        for step, lane, *row in zip(
            item.step, item.lane, item.epoch, item.shard_index, item.row_group_index, item.row,
            strict=True,
        ):  # fmt: skip
            assert (step, lane) not in found
            found[int(step), int(lane)] = tuple(int(each) for each in row)
    return found


def uniform(count, rows=32, shard=0):
    return [RowGroup(shard, index, rows) for index in range(count)]


@given(row_groups, seeds, batches)
@settings(max_examples=150, deadline=None)
def test_every_sample_is_trained_exactly_once_per_epoch(groups, seed, global_batch):
    plan = Plan(groups, seed=seed, global_batch=global_batch)
    everything = {(g.shard_index, g.row_group_index, r) for g in groups for r in range(g.rows)}
    rows_of_window = plan.lane_rows * global_batch
    windows = -(-3 * len(everything) // rows_of_window)
    seen = Counter(cells(plan.items(0, windows * plan.lane_rows)).values())
    assert max(seen.values()) == 1
    for epoch in range(windows * rows_of_window // len(everything)):
        assert {row[1:] for row in seen if row[0] == epoch} == everything


@given(row_groups, seeds, batches, st.integers(0, 40), st.integers(1, 30), st.data())
@settings(max_examples=150, deadline=None)
def test_steps_are_the_same_for_every_start_worker_count_and_item_size(
    groups, seed, global_batch, first, steps, data
):
    plan = Plan(groups, seed=seed, global_batch=global_batch)
    whole = cells(plan.items(0, first + steps))
    workers = data.draw(st.sampled_from([w for w in range(1, 17) if global_batch % w == 0]))
    rows_per_item = data.draw(st.integers(1, 200))
    again = Plan(groups, seed=seed, global_batch=global_batch)
    items = list(again.items(first, first + steps, world_size=workers, rows_per_item=rows_per_item))
    assert cells(items) == {cell: row for cell, row in whole.items() if cell[0] >= first}
    # Each round has one item per rank, of equal length, with the lanes of that rank in order.
    for index, item in enumerate(items):
        rank = index % workers
        assert len(item.step) == len(items[index - rank].step)
        order = list(zip(item.step, item.lane, strict=True))
        assert order == sorted(order)
        assert set(item.lane) == set(range(rank, global_batch, workers))


@given(row_groups, seeds, batches)
@settings(max_examples=40, deadline=None)
def test_pairs_train_every_sample_exactly_once_per_epoch_too(groups, seed, global_batch):
    plan = Plan(groups, seed=seed, global_batch=global_batch, pairs=True)
    plain = Plan(groups, seed=seed, global_batch=global_batch)
    span = 2 * plan.lane_rows
    spans = -(-2 * plan.rows // (span * global_batch))
    found, expected = (cells(each.items(0, spans * span)) for each in (plan, plain))
    # Two windows are interleaved, lane by lane.
    for (step, lane), row in found.items():
        start, inside = step // span * span, step % span
        before = start + inside // 2 + inside % 2 * plan.lane_rows
        assert row == expected[before, lane]


@given(row_groups, seeds, batches, st.integers(0, 40), st.integers(1, 30), st.data())
@settings(max_examples=40, deadline=None)
def test_pairs_are_whole_for_every_start_worker_count_and_item_size(
    groups, seed, global_batch, first, steps, data
):
    plan = Plan(groups, seed=seed, global_batch=global_batch, pairs=True)
    stop = first + steps
    whole = cells(plan.items(0, stop))
    workers = data.draw(st.sampled_from([w for w in range(1, 17) if global_batch % w == 0]))
    rows_per_item = data.draw(st.integers(1, 200))
    items = list(plan.items(first, stop, world_size=workers, rows_per_item=rows_per_item))
    start, end = extend_to_pairs(first, stop, pairs=True)
    assert (start % 2, end % 2) == (0, 0)
    assert start <= first < start + 2
    assert stop <= end < stop + 2
    assert cells(items) == {cell: row for cell, row in whole.items() if cell[0] >= start}
    for index, item in enumerate(items):
        assert (item.step[0] % 2, item.step[-1] % 2) == (0, 1)
        assert len(item.step) == len(items[index - index % workers].step)


def test_pairs_are_of_different_row_groups():
    plan = Plan(uniform(64), seed=0, global_batch=16, pairs=True)
    found = cells(plan.items(0, 256))
    other = [found[step ^ 1, lane][2] for step, lane in found]
    assert all(row[2] != group for row, group in zip(found.values(), other, strict=True))
    # An item of whole spans reads each row group once.
    item = next(plan.items(0, 256, world_size=8))
    assert len(item.step) == 128
    assert len(set(item.row_group_index.tolist())) == 4


def draw_repeats(groups, data):
    rows = sum(group.rows for group in groups)
    factor = st.sampled_from([1.0, 1.0, 1.3, 2.0, 3.7])
    factors = data.draw(st.lists(factor, min_size=rows, max_size=rows))
    return Repeats(factors=np.array(factors), image_ids=1000 + np.arange(rows))


@given(row_groups, seeds, batches, st.data())
@settings(max_examples=60, deadline=None)
def test_repeated_samples_are_trained_exactly_their_count_per_epoch(
    groups, seed, global_batch, data
):
    repeats = draw_repeats(groups, data)
    plan = Plan(groups, seed=seed, global_batch=global_batch, repeats=repeats)
    everything = [(g.shard_index, g.row_group_index, r) for g in groups for r in range(g.rows)]
    counts = [repeats.counts(seed, epoch) for epoch in range(3)]
    ends = np.cumsum([each.sum() for each in counts])
    windows = -(-int(ends[-1]) // (plan.lane_rows * global_batch))
    seen = Counter()
    for item in plan.items(0, windows * plan.lane_rows):
        columns = (item.epoch, item.shard_index, item.row_group_index, item.row, item.repeat)
        seen.update(tuple(map(int, each)) for each in zip(*columns, strict=True))
        assert [plan.epoch_of(int(step)) for step in item.step] == item.step_epoch.tolist()
    # Each repetition has its own number.
    assert max(seen.values()) == 1
    expected = {
        (epoch, *row, repeat)
        for epoch in range(3)
        for row, count in zip(everything, counts[epoch], strict=True)
        for repeat in range(count)
    }
    assert {each for each in seen if each[0] < 3} == expected
    for step in range(int(ends[-1]) // global_batch):
        assert plan.epoch_of(step) == np.searchsorted(ends, step * global_batch, side="right")


@given(row_groups, seeds, batches, st.integers(0, 40), st.integers(1, 30), st.data())
@settings(max_examples=60, deadline=None)
def test_repeats_are_the_same_for_every_start_worker_count_and_item_size(
    groups, seed, global_batch, first, steps, data
):
    repeats = draw_repeats(groups, data)
    plan = Plan(groups, seed=seed, global_batch=global_batch, repeats=repeats)
    whole = cells(plan.items(0, first + steps))
    wanted = {cell: row for cell, row in whole.items() if cell[0] >= first}
    workers = data.draw(st.sampled_from([w for w in range(1, 17) if global_batch % w == 0]))
    rows_per_item = data.draw(st.integers(1, 200))
    again = Plan(groups, seed=seed, global_batch=global_batch, repeats=repeats)
    items = again.items(first, first + steps, world_size=workers, rows_per_item=rows_per_item)
    assert cells(items) == wanted


def test_factors_of_one_change_nothing():
    groups = [*uniform(20), RowGroup(1, 0, 17)]
    ones = Repeats(factors=np.ones(657), image_ids=np.arange(657))
    plain = Plan(groups, seed=5, global_batch=8)
    plan = Plan(groups, seed=5, global_batch=8, repeats=ones)
    assert cells(plan.items(0, 300)) == cells(plain.items(0, 300))


def test_repetitions_of_a_sample_are_far_apart():
    # One row in 32 is trained 8 times, rarely within the 32 steps of one window.
    factors = np.where(np.arange(3200) % 32 == 5, 8.0, 1.0)
    repeats = Repeats(factors=factors, image_ids=np.arange(3200))
    plan = Plan(uniform(100), seed=1, global_batch=8, repeats=repeats)
    steps = {}
    for item in plan.items(0, int(repeats.counts(1, 0).sum()) // 8):
        for step, group, row in zip(item.step, item.row_group_index, item.row, strict=True):
            steps.setdefault((int(group), int(row)), []).append(int(step))
    gaps = [gap for found in steps.values() for gap in np.diff(sorted(found))]
    # 8 repetitions in 487 steps: 61 apart on average if evenly spread.
    assert np.median(gaps) > 20
    assert np.mean(np.array(gaps) < 4) < 0.15


def test_whole_row_groups_are_read_once_each():
    groups = [*uniform(100), RowGroup(1, 0, 17)]
    plan = Plan(groups, seed=5, global_batch=16)
    assert plan.lane_rows == 32
    found = cells(plan.items(0, 2000))
    blocks = [
        {found[step, lane][1:3] for step in range(window * 32, window * 32 + 32)}
        for window in range(2000 // 32)
        for lane in range(16)
    ]
    reads = Fraction(sum(len(block) for block in blocks), len(blocks))
    assert reads < Fraction(103, 100)


def test_few_row_groups_fill_every_lane():
    # 209 samples in 7 row groups and 16 lanes: each lane gets 13 rows.
    plan = Plan([*uniform(6), RowGroup(0, 6, 17)], seed=0, global_batch=16)
    assert plan.lane_rows == 13
    assert len(set(cells(plan.items(0, 13)).values())) == 208


def test_a_batch_mixes_row_groups_and_epochs_differ():
    plan = Plan(uniform(64), seed=0, global_batch=16)
    found = cells(plan.items(0, 256))
    for step in range(256):
        assert len({found[step, lane][2] for lane in range(16)}) == 16
    first = [found[step, lane][1:] for step in range(128) for lane in range(16)]
    second = [found[step, lane][1:] for step in range(128, 256) for lane in range(16)]
    assert sorted(first) == sorted(second)
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 20
    other = cells(Plan(uniform(64), seed=1, global_batch=16).items(0, 128))
    assert sum(other[cell] == found[cell] for cell in other) < 20


def test_the_order_is_the_same_across_versions():
    # A run that a later version resumes must keep its order.
    plan = Plan([RowGroup(0, 0, 4), RowGroup(0, 1, 3)], seed=7, global_batch=2)
    found = cells(plan.items(0, 6))
    assert [found[step, lane] for step in range(6) for lane in range(2)] == [
        (0, 0, 0, 1),
        (0, 0, 1, 1),
        (0, 0, 0, 0),
        (0, 0, 1, 2),
        (0, 0, 0, 3),
        (0, 0, 1, 0),
        (0, 0, 0, 2),
        (1, 0, 1, 2),
        (1, 0, 0, 1),
        (1, 0, 1, 1),
        (1, 0, 0, 2),
        (1, 0, 1, 0),
    ]


def test_epoch_of_counts_completed_epochs():
    plan = Plan(uniform(3, rows=10), seed=0, global_batch=4)
    assert [plan.epoch_of(step) for step in (0, 7, 8, 14, 15, 16)] == [0, 0, 1, 1, 2, 2]
    for item in plan.items(0, 40):
        assert [plan.epoch_of(int(step)) for step in item.step] == item.step_epoch.tolist()


def test_a_far_step_does_not_compute_earlier_epochs():
    plan = Plan(uniform(500), seed=0, global_batch=16)
    far = 10**9
    assert len(cells(plan.items(far, far + 2))) == 32
    assert set(plan._epochs) == {far * 16 // 16000}


def test_items_survive_serialization():
    item = next(Plan(uniform(3), seed=0, global_batch=4).items(0, 9))
    back = Item.from_bytes(item.to_bytes())
    for column in ("step", "lane", "epoch", "row", "repeat", "shard_index", "row_group_index"):
        np.testing.assert_array_equal(getattr(back, column), getattr(item, column))


def test_invalid_plans_are_rejected():
    with pytest.raises(DatasetError, match="no rows"):
        Plan([RowGroup(0, 0, 0)], seed=0, global_batch=2)
    with pytest.raises(TrainingError, match="3 workers cannot share a global batch of 4"):
        list(Plan(uniform(2), seed=0, global_batch=4).items(0, 1, world_size=3))


@given(st.integers(1, 3000), st.integers(1, 1500), st.sampled_from([1, 16, 512, 100_000]))
def test_chapters_cover_the_run_and_resume_at_any_step(steps, chapter_steps, global_batch):
    run = chapters(steps=steps, chapter_steps=chapter_steps, global_batch=global_batch)
    assert [step for each in run for step in range(each.first_step, each.stop_step)] == list(
        range(steps)
    )
    names = [entry.name for chapter in run for entry in chapter.entries()]
    assert len(set(names)) == len(names)
    for chapter in run:
        assert (chapter.stop_step - chapter.first_step - 1) * global_batch <= ROWS_PER_CHAPTER
        for first_step in range(chapter.first_step, chapter.stop_step, 7):
            rest = chapter.resume_at(first_step)
            assert rest.name in names
            assert 0 <= first_step - rest.first_step < chapter.entry_every
            assert rest.stop_step == chapter.stop_step


def test_a_long_run_has_few_chapters_and_resumes_at_each_checkpoint():
    run = chapters(steps=90_000, chapter_steps=1000, global_batch=16)
    assert len(run) == 5
    assert run[1].resume_at(run[1].first_step + 3000).first_step == run[1].first_step + 3000
