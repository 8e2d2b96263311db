import hashlib
import json
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from pipeline.data.collate import prepare_rows
from pipeline.data.collate_steps import CollateSteps
from pipeline.data.manifest import Manifest, ShardInfo, read_manifest
from pipeline.data.plan import Chapter
from pipeline.data.prefetch import prefetch
from pipeline.data.read_rows import make_plan, read_item, rows_per_item, train_columns
from pipeline.data.stream import _collate_steps, _steps, local_batches
from pipeline.errors import DatasetError, TrainingError
from pipeline.recipe import ColorConfig, DataConfig, RobustConfig
from tests.pipeline.data.tiny_maps import write_map_shards
from tests.pipeline.data.tiny_shards import tiny_row, write_tiny_split

DATA = DataConfig(short_edge_px=(32, 48), test_short_edge_px=32, long_edge_px=64)
RUN = {"seed": 3, "global_batch": 4, "images_per_microbatch": 3}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_tiny_split(tmp_path_factory.mktemp("shards") / "train")


def ids_of(batches):
    return [[int(i) for each in step.microbatches for i in each.image_id] for step in batches]


def test_every_image_is_trained_once_per_epoch_in_microbatches(split):
    steps = list(local_batches(split, DATA, **RUN, first_step=0, stop_step=24))
    assert [each.step for each in steps] == list(range(24))
    assert [each.epoch for each in steps] == [step * 4 // 32 for step in range(24)]
    assert all([len(each.image_id) for each in step.microbatches] == [3, 1] for step in steps)
    assert all(
        [*step.microbatches[0].lanes, *step.microbatches[1].lanes] == [0, 1, 2, 3] for step in steps
    )
    for epoch in range(3):
        seen = [i for step in ids_of(steps[8 * epoch : 8 * epoch + 8]) for i in step]
        assert sorted(seen) == list(range(100, 132))


def test_a_resumed_stream_continues_the_same_sequence(split):
    whole = list(local_batches(split, DATA, **RUN, first_step=0, stop_step=12))
    rest = list(local_batches(split, DATA, **RUN, first_step=5, stop_step=12))
    assert [each.step for each in rest] == list(range(5, 12))
    for again, before in zip(rest, whole[5:], strict=True):
        for one, other in zip(again.microbatches, before.microbatches, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets.sample_seed, other.targets.sample_seed)


AUGMENTED = replace(
    DATA, scale_jitter=(0.3, 2.0), crop_px=64, copy_paste=0.8, robust=RobustConfig(blur=0.5)
)


def hash_samples(steps):
    """Hash the pixels and targets of each sample, by step and lane."""
    found = {}
    for step in steps:
        for batch in step.microbatches:
            for index, lane in enumerate(batch.lanes.tolist()):
                digest = hashlib.sha256(batch.images[index].numpy().tobytes())
                valid = batch.targets.valid[index]
                for each in (*batch.targets[:2], *batch.targets[3:5]):
                    digest.update(each[index][valid].numpy().tobytes())
                digest.update(repr((batch.dropped[index], batch.image_id[index])).encode())
                assert (step.step, lane) not in found
                found[step.step, lane] = digest.hexdigest()
    return found


def read_on_workers(split, data, *, world_size, first_step, stop_step, microbatch=3):
    """Read each worker's items as its tasks do, and collate them."""
    manifest = read_manifest(split)
    plan = make_plan(split, manifest, seed=3, global_batch=4, repeat_threshold=0, pairs=True)
    files = tuple(shard.file for shard in manifest.shards)
    columns = train_columns(manifest.task, with_masks=True)
    items = list(plan.items(first_step, stop_step, world_size=world_size, rows_per_item=24))
    for rank in range(world_size):
        tables = [
            read_item(item, split_uri=split, files=files, columns=columns)
            for item in items[rank::world_size]
        ]
        if data.decode_in == "tasks":
            tables = [prepare_rows(rows, data, seed=3) for rows in tables]
        yield from _collate_steps(
            tables,
            Chapter("", first_step, stop_step, 1),
            data,
            first_step=first_step,
            lanes=range(rank, 4, world_size),
            collate=CollateSteps(data, seed=3, images_per_microbatch=microbatch, with_masks=False),
        )


def test_augmented_samples_are_equal_on_any_number_of_workers_and_after_a_resume(split):
    whole = list(local_batches(split, AUGMENTED, **RUN, first_step=0, stop_step=19))
    expected = hash_samples(whole)
    assert len(set(expected.values())) == 19 * 4
    dropped = sum(int(batch.dropped.sum()) for step in whole for batch in step.microbatches)
    assert dropped > 0
    read = partial(read_on_workers, split, AUGMENTED, first_step=0, stop_step=19)
    assert hash_samples(read(world_size=1)) == expected
    assert hash_samples(read(world_size=2)) == expected
    assert hash_samples(read(world_size=4, microbatch=1)) == expected
    in_tasks = replace(AUGMENTED, decode_in="tasks")
    tasks = read_on_workers(split, in_tasks, world_size=2, first_step=0, stop_step=19)
    assert hash_samples(tasks) == expected
    for first, stop in ((7, 19), (8, 13)):
        rest = {cell: each for cell, each in expected.items() if first <= cell[0] < stop}
        run = {"first_step": first, "stop_step": stop}
        assert hash_samples(local_batches(split, AUGMENTED, **RUN, **run)) == rest
        assert hash_samples(read_on_workers(split, AUGMENTED, world_size=2, **run)) == rest


def test_pasted_objects_come_from_the_same_lane_and_the_other_step_of_a_pair(split):
    data = replace(DATA, short_edge_px=(48,), flip_probability=0.0, copy_paste=1.0)
    run = {**RUN, "images_per_microbatch": 4, "first_step": 0, "stop_step": 16}
    plain = [step.microbatches[0] for step in local_batches(split, data, **run)]
    with_paste = 0
    for step, batch in enumerate(plain):
        other = plain[step ^ 1]
        for lane in range(4):
            stored = tiny_row(int(batch.image_id[lane]))
            partner = tiny_row(int(other.image_id[lane]))
            fields = {
                bytes(field)
                for row in (stored, partner)
                for field, crowd in zip(row["squeeze_field"], row["is_crowd"], strict=True)
                if not crowd
            }
            kept = batch.targets.squeeze_field[lane][batch.targets.valid[lane]]
            own = sum(not crowd for crowd in stored["is_crowd"])
            with_paste += len(kept) + int(batch.dropped[lane]) > own
            # A field that is neither's was measured again: its object is partly covered.
            assert sum(each.numpy().tobytes() not in fields for each in kept) <= own
    assert with_paste > 15


def test_samples_without_new_augmentations_are_those_of_earlier_versions(split):
    data = replace(DATA, short_edge_px=(48,), color=ColorConfig(brightness=0.4))
    for with_masks, expected in (
        (False, "bcee4092c1f2b6ea741122b0e8d2942e2d47ed3563a5726815dfc71f7c0a87e0"),
        (True, "6c885784ee492433c68b73fa70da1e1270c52090accc251d62303a1f6edbed6a"),
    ):
        digest = hashlib.sha256()
        run = {**RUN, "first_step": 0, "stop_step": 12, "with_masks": with_masks}
        for step in local_batches(split, data, **run):
            for batch in step.microbatches:
                plan = (batch.images, batch.image_sizes_hw, batch.image_id, batch.lanes)
                for each in (*plan, batch.colors, *batch.targets):
                    digest.update(b"" if each is None else each.contiguous().numpy().tobytes())
        assert digest.hexdigest() == expected


def test_masks_are_optional(split):
    run = {"first_step": 0, "stop_step": 1}
    assert next(local_batches(split, DATA, **RUN, **run)).microbatches[0].targets.masks is None
    with_masks = next(local_batches(split, DATA, **RUN, **run, with_masks=True)).microbatches[0]
    # As stored, not resized like the images.
    assert with_masks.targets.masks.shape[2:] == tuple(with_masks.original_sizes_hw.amax(0))


def test_label_maps_follow_the_same_plan(tmp_path):
    maps = write_map_shards(tmp_path)
    data = DataConfig(crop_px=32, scale_range=(0.5, 2.0))
    whole = list(local_batches(maps, data, **RUN, first_step=0, stop_step=6))
    for epoch in range(2):
        seen = [i for step in ids_of(whole[3 * epoch : 3 * epoch + 3]) for i in step]
        assert sorted(seen) == sorted([1, 2, 3, 4, 5, 6] * 2)
    rest = list(local_batches(maps, data, **RUN, first_step=2, stop_step=6))
    for again, before in zip(rest, whole[2:], strict=True):
        for one, other in zip(again.microbatches, before.microbatches, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets.label, other.targets.label)
            assert torch.equal(one.targets.zoom, other.targets.zoom)


def test_an_item_has_fewer_rows_if_they_are_large():
    def split(row_bytes):
        shard = ShardInfo(file="a", rows=320, row_groups=(32,) * 10, size_bytes=320 * row_bytes)
        return Manifest(categories=(), shards=(shard,), images=320, annotations=0, fingerprint="")

    coco, cityscapes = split(160_000), split(2_400_000)
    assert rows_per_item(coco) == 128
    assert rows_per_item(cityscapes) * 2_400_000 < 40e6
    assert rows_per_item(split(10**9)) == 1


def test_all_threads_stop_when_the_consumer_leaves(split):
    before = set(threading.enumerate())
    batches = local_batches(split, DATA, **RUN, first_step=0, stop_step=10_000)
    next(batches)
    assert set(threading.enumerate()) > before
    batches.close()
    assert set(threading.enumerate()) == before


def test_incomplete_or_damaged_folders_are_rejected(tmp_path):
    run = {**RUN, "first_step": 0, "stop_step": 4}
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        local_batches(str(tmp_path), DATA, **run)
    split = write_tiny_split(tmp_path / "train")
    shard = Path(split, "part-00001.parquet")
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(
        DatasetError, match=r"part-00001\.parquet, row group \d: .*ingest the split"
    ):
        list(local_batches(split, DATA, **run))
    shard.unlink()
    with pytest.raises(DatasetError, match=r"part-00001\.parquet, row group"):
        list(local_batches(split, DATA, **run))


def test_a_shard_that_differs_from_the_manifest_is_rejected(tmp_path):
    split = write_tiny_split(tmp_path / "train")
    path = Path(split, "dataset.json")
    manifest = json.loads(path.read_text())
    manifest["shards"][0] |= {"rows": 25, "row_groups": [8, 8, 9]}
    manifest["images"] = 36
    path.write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match=r"part-00000\.parquet, row group 2"):
        list(local_batches(split, DATA, **RUN, first_step=0, stop_step=9))


def table(*rows):
    return pa.table({"step": [row[0] for row in rows], "lane": [row[1] for row in rows]})


CHAPTER = Chapter("steps_00000002", 2, 4, 2)
GOOD = [table((2, 1), (2, 3)), table((3, 1), (3, 3))]


def test_steps_before_the_first_step_are_skipped():
    assert [step for step, _ in _steps(GOOD, CHAPTER, 3, lanes=range(1, 4, 2))] == [3]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "ended before step 2, the last step is 3"),
        (GOOD[:1], "ended before step 3"),
        (GOOD[1:], "got step 3, expected step 2"),
        ([GOOD[0], *GOOD], "got step 2, expected step 3"),
        ([*GOOD, table((4, 1), (4, 3))], "got step 4, expected the end"),
        ([table((2, 0), (2, 2)), GOOD[1]], r"step 2: .* lanes \[0, 2\] .* owns lanes \[1, 3\]"),
        ([table((2, 1)), GOOD[1]], r"lanes \[1\]"),
        ([table((2, 1), (3, 1))], "got step 2, 3, expected step 2"),
    ],
)
def test_a_stream_that_deviates_from_the_plan_is_rejected(tables, message):
    with pytest.raises(TrainingError, match=message):
        list(_steps(tables, CHAPTER, 2, lanes=range(1, 4, 2)))


def test_prefetch_keeps_the_order_and_the_bound():
    drawn = []

    def source():
        for each in range(40):
            drawn.append(each)
            yield each

    def work(each):
        time.sleep(0.01 if each % 3 else 0.03)
        return each

    results = prefetch(source(), work, max_pending=3, threads=3)
    assert next(results) == 0
    time.sleep(0.3)
    # One taken, three pending, one held by the thread that iterates over the source.
    assert len(drawn) <= 6
    assert list(results) == list(range(1, 40))


def test_errors_are_raised_in_order():
    def source():
        yield from range(5)
        raise TrainingError("of the source")

    results = prefetch(source(), lambda each: each, max_pending=2, threads=1)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(TrainingError, match="of the source"):
        next(results)

    def work(each):
        if each == 2:
            raise DatasetError("of the work")
        return each

    found = []
    with pytest.raises(DatasetError, match="of the work"):
        found.extend(prefetch((each for each in range(9)), work, max_pending=4, threads=2))


def test_the_prefetch_depth_does_not_change_the_batches(split):
    run = {**RUN, "first_step": 0, "stop_step": 6}
    one = ids_of(local_batches(split, replace(DATA, prefetch_batches=1), **run))
    assert one == ids_of(local_batches(split, replace(DATA, prefetch_batches=8), **run))
