"""The stream on Ray gives the tensors of the local one; test_training_ray.py kills its readers."""

import hashlib
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import ray.cloudpickle
import ray.train
import ray.train.torch

from pipeline.data import ray_chapters as ray_side
from pipeline.data.plan import Chapter
from pipeline.data.stream import local_batches, ray_chapters, worker_batches
from pipeline.errors import DatasetError
from pipeline.recipe import DataConfig
from tests.pipeline.data.tiny_shards import write_tiny_split

pytestmark = pytest.mark.slow

DATA = DataConfig(short_edge_px=(32, 48), test_short_edge_px=32, long_edge_px=64)
PLAN = {"seed": 3, "global_batch": 4}
STEPS = 20
CHAPTERS = (Chapter("steps_00000000", 0, 12, 4), Chapter("steps_00000012", 12, STEPS, 4))
KILLED_AT = 10

# Ray's workers cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_tiny_split(tmp_path_factory.mktemp("shards") / "train")


def digests_of(step):
    """Map (step, lane) to the image id and a hash of its unpadded tensors."""
    found = {}
    for batch in step.microbatches:
        for index, lane in enumerate(batch.lanes.tolist()):
            height, width = batch.image_sizes_hw[index].tolist()
            assert not batch.images[index, :, height:].any()
            assert not batch.images[index, :, :, width:].any()
            hashed = hashlib.sha256(batch.images[index, :, :height, :width].numpy().tobytes())
            valid = batch.targets.valid[index]
            for name, each in batch.targets._asdict().items():
                kept = each[index] if name == "sample_seed" else each[index][valid]
                if name == "masks":  # of the stored size, not the input's
                    stored = batch.original_sizes_hw[index].tolist()
                    kept = kept[:, : stored[0], : stored[1]]
                hashed.update(kept.contiguous().numpy().tobytes())
            found[step.step, lane] = (int(batch.image_id[index]), hashed.hexdigest())
    return found


def draw_chapter(config, names, chapter, *, data, workers, first_step=0):
    """Iterate over a chapter as Ray Train workers do, each in a thread of this process."""
    rest = chapter.resume_at(first_step)
    splits = config.configure({rest.name: names[rest.name]}, workers)
    here = threading.local()

    def draw(rank):
        here.shard = splits[rank][rest.name]
        batches = worker_batches(
            chapter, data, **PLAN, rank=rank, world_size=workers, images_per_microbatch=4,
            first_step=first_step, with_masks=True,
        )  # fmt: skip
        return list(batches)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(workers) as pool:
        patch.setattr(ray_side.ray.train, "get_dataset_shard", lambda _: here.shard)
        return list(pool.map(draw, range(workers)))


@pytest.fixture(scope="module")
def local_digests(split):
    batches = local_batches(
        split, DATA, **PLAN, images_per_microbatch=4, first_step=0, stop_step=STEPS, with_masks=True
    )
    return {cell: digest for step in batches for cell, digest in digests_of(step).items()}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("decode_in", "worker_counts"), [("trainer", (1, 2, 4)), ("tasks", (2,))])
def test_every_worker_count_trains_the_tensors_of_the_local_stream(
    one_ray, split, local_digests, decode_in, worker_counts
):
    data = replace(DATA, decode_in=decode_in)
    names, config = ray_chapters(split, data, **PLAN, chapters=CHAPTERS, with_masks=True)
    for workers in worker_counts:
        found = {}
        for chapter in CHAPTERS:
            for steps in draw_chapter(config, names, chapter, data=data, workers=workers):
                assert [each.step for each in steps] == list(
                    range(chapter.first_step, chapter.stop_step)
                )
                assert [each.epoch for each in steps] == [each.step * 4 // 32 for each in steps]
                for each in steps:
                    found |= digests_of(each)
        assert found == local_digests


@pytest.mark.timeout(120)
def test_repeated_images_match_the_local_stream(one_ray, split):
    data = replace(DATA, repeat_threshold=0.9)
    batches = local_batches(
        split, data, **PLAN, images_per_microbatch=4, first_step=0, stop_step=12, with_masks=True
    )
    local = {cell: digest for step in batches for cell, digest in digests_of(step).items()}
    names, config = ray_chapters(split, data, **PLAN, chapters=CHAPTERS[:1], with_masks=True)
    ranks = draw_chapter(config, names, CHAPTERS[0], data=data, workers=2)
    found = {
        cell: each for steps in ranks for step in steps for cell, each in digests_of(step).items()
    }
    assert found == local
    # An epoch has more than 32 samples.
    assert len({image_id for image_id, _ in list(local.values())[:36]}) < 36


@pytest.mark.timeout(120)
def test_a_resume_reads_a_chapter_from_its_last_entry(one_ray, split, local_digests):
    names, config = ray_chapters(split, DATA, **PLAN, chapters=CHAPTERS, with_masks=True)
    ranks = draw_chapter(config, names, CHAPTERS[0], data=DATA, workers=2, first_step=6)
    found = {
        cell: each for steps in ranks for step in steps for cell, each in digests_of(step).items()
    }
    assert found == {cell: each for cell, each in local_digests.items() if 6 <= cell[0] < 12}
    # Step 4 is the last entry before 6.
    assert "steps_00000004" in names


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore")
def test_errors_of_data_tasks_reach_the_worker_unchanged(one_ray, tmp_path):
    split = write_tiny_split(tmp_path / "train")
    names, config = ray_chapters(split, DATA, **PLAN, chapters=CHAPTERS)
    Path(split, "part-00001.parquet").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"part-00001\.parquet, row group"):
        draw_chapter(config, names, CHAPTERS[0], data=DATA, workers=2)


def test_only_the_console_of_ray_data_becomes_quiet(one_ray, split):
    # Pytest, for one, adds a handler here: caplog would lose lines for the rest of the session.
    logger, added = logging.getLogger("ray.data"), logging.StreamHandler()
    logger.addHandler(added)
    try:
        ray_chapters(split, DATA, **PLAN, chapters=CHAPTERS)
        assert added.level == logging.NOTSET
    finally:
        logger.removeHandler(added)
