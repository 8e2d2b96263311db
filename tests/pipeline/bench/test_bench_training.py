import os
import subprocess
import time
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.distributed as dist

from pipeline.bench import bare_training, coco_folder, training
from pipeline.bench.bare_feed import bare_batches
from pipeline.bench.our_feed import feed_batches, make_data_config
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CocoIngest
from pipeline.recipe import OptimConfig, Recipe, ScaleConfig
from tests.bsm.synthetic import tiny_config

LINES = [
    (0.5, "ingest: nothing of interest"),
    (9.0, "step 1/40  loss 2 (mask .7)  lr 0.1  5.0 img/s  data 3%"),
    (11.0, "step 10/40  loss 2 (mask .7)  lr 0.1  40.0 img/s  data 3%"),
    (13.0, "step 20/40  loss 2 (mask .7)  lr 0.1  40.0 img/s  data 3%"),
    (17.0, "step 30/40  loss 2 (mask .7)  lr 0.1  20.0 img/s  data 50%"),
    (19.0, "step 40/40  loss 2 (mask .7)  lr 0.1  40.0 img/s  data 3%"),
    (24.5, 'RESULT {"images_per_s": 31.5}'),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    coco_folder.write_coco_folder(root, images=4, objects=2, size_hw=(48, 64))
    out = root / "shards" / coco_folder.SPLIT
    ingest_dataset(CocoIngest(root=str(root), split=coco_folder.SPLIT, out=str(out), workers=0))
    return out


def test_the_times_of_a_run_are_those_of_its_lines():
    run = training.summarize(LINES, batch=8, split_share=0.25)
    assert run == training.TrainingRun(
        first_step_s=9.0, images_per_s=31.5, turn_s=2.0, end_s=5.5, split_share=0.25
    )


def test_the_report_compares_runs_of_one_round(capsys):
    run = training.summarize(LINES, batch=8, split_share=0.25)
    found = {
        "Ray": [run],
        "torchrun": [replace(run, images_per_s=35.0, first_step_s=3.0)],
        "one": [replace(run, images_per_s=17.0)],
    }
    result = training._report(found)
    assert result["images/s, Ray / torchrun"] == 0.9
    assert result["start to first step, Ray / torchrun"] == 3.0
    assert result["images/s, two workers / twice one"] == pytest.approx(31.5 / 34, abs=1e-3)
    assert result["missed"] == ["start to first step, Ray / torchrun", "turn, s"]
    assert "at most 2: NO" in capsys.readouterr().out


def test_the_cpu_time_is_that_of_the_split_below_the_command():
    busy = ["bash", "-c", "exec -a ray::SplitCoordinator bash -c 'while :; do :; done'"]
    with subprocess.Popen(busy) as process:
        try:
            deadline = time.monotonic() + 60
            while not (found := training._split_cpu_seconds(os.getpid())):
                assert time.monotonic() < deadline
            other = training._split_cpu_seconds(os.getppid() + 10**9)
        finally:
            process.kill()
    assert found > 0
    assert other == 0


def test_the_bare_feed_gives_the_tensors_of_ours(shards):
    data = make_data_config(
        shards, short_edge_px=(96,), test_short_edge_px=96, long_edge_px=128, flip_probability=1.0
    )
    (ours,) = feed_batches(data, images=4, batch=4)
    (bare,) = islice(bare_batches(shards, batch=4, short_edge_px=96, long_edge_px=128), 1)
    order = ours.image_id.argsort()
    assert torch.equal(bare.image_id, ours.image_id[order])
    assert torch.equal(bare.images, ours.images[order])
    for name in ("category_index", "valid", "squeeze_field"):
        assert torch.equal(getattr(bare.targets, name), getattr(ours.targets, name)[order]), name
    for name in ("boxes_xyxy", "field_frame_xyxy"):
        sides = getattr(bare.targets, name), getattr(ours.targets, name)[order]
        torch.testing.assert_close(*sides, msg=name)


def test_the_bare_loop_trains_and_prints_what_the_benchmark_reads(shards, tmp_path, capsys):
    recipe = Recipe(
        name="bare",
        model=tiny_config(kind="plain", num_classes=80),
        data=make_data_config(shards, short_edge_px=(64,)),
        optim=OptimConfig(global_batch=2, steps=2, warmup_steps=0, decay_at=()),
        scale=ScaleConfig(num_workers=1, images_per_microbatch=1, threads_per_worker=1),
    )
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        bare_training.train_bare(recipe)
    finally:
        dist.destroy_process_group()
    lines = [(float(n), line) for n, line in enumerate(capsys.readouterr().out.splitlines())]
    run = training.summarize(lines, batch=2, split_share=0.0)
    assert run.images_per_s > 0
    assert (run.first_step_s, run.end_s) == (0.0, 1.0)
