"""The list of samples counts the objects that crops and pasted objects hide."""

import csv
import io
import logging
from dataclasses import replace

import torch

from pipeline import storage
from pipeline.data.stream import local_batches
from pipeline.recipe import DataConfig
from pipeline.training.sample_log import SampleLog, merge_sample_lists
from pipeline.training.step import WorkerContext
from tests.pipeline.data.tiny_shards import write_tiny_split

DATA = DataConfig(short_edge_px=(48,), test_short_edge_px=48, long_edge_px=64)
STEPS = 8


def log_samples(split, data, run_uri):
    log = SampleLog(WorkerContext(device=torch.device("cpu")))
    dropped = 0
    for item in local_batches(
        split, data, seed=0, global_batch=4, images_per_microbatch=3, first_step=0, stop_step=STEPS
    ):
        log.add(item.microbatches, step=item.step, epoch=item.epoch)
        dropped += sum(int(each.dropped.sum()) for each in item.microbatches if data.edits_masks)
        if item.step == 3:
            log.write(run_uri)
    log.write(run_uri)
    uri, _ = merge_sample_lists(run_uri, steps=STEPS, global_batch=4)
    return list(csv.reader(io.StringIO(storage.read_bytes(uri).decode()))), dropped


def test_hidden_objects_are_counted_where_there_can_be_some(tmp_path, caplog):
    split = write_tiny_split(tmp_path / "train")
    with caplog.at_level(logging.INFO, logger="pipeline"):
        plain, _ = log_samples(split, DATA, str(tmp_path / "plain"))
    assert plain[0] == ["step", "epoch", "lane", "image_id"]
    assert "hid" not in caplog.text
    edited = replace(DATA, scale_jitter=(1.0, 2.0), crop_px=64, copy_paste=1.0)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        rows, dropped = log_samples(split, edited, str(tmp_path / "edited"))
    assert rows[0] == ["step", "epoch", "lane", "image_id", "dropped"]
    assert sum(int(row[4]) for row in rows[1:]) == dropped > 1
    assert f"crops and pasted objects hid {dropped} objects, which were dropped" in caplog.text
