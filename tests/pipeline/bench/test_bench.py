import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bsm.build import build_model
from pipeline.bench import coco_engines, coco_folder, drawing, gpu, memory, memory_probe, paste
from pipeline.bench.peers import find_python
from pipeline.bench.report import Bar, report
from pipeline.bench.timing import Runs, Sample, time_in_turn, timed
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CocoIngest
from pipeline.data.manifest import read_manifest
from pipeline.errors import RecipeError
from pipeline.evaluation.metrics import evaluate_detections
from tests.bsm.synthetic import tiny_config

ROOT = Path(__file__).parents[3]


def test_ratios_are_those_of_one_round():
    runs = Runs(
        slow=[Sample(4.0, 8.0), Sample(40.0, 9.0), Sample(5.0, 7.0)],
        fast=[Sample(2.0, 1.0), Sample(20.0, 1.0), Sample(1.0, 1.0)],
    )
    ratio = runs.ratio("slow", "fast", "cpu")
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 5.0)


def test_a_report_names_the_bars_that_were_missed(capsys):
    runs = Runs(a=[Sample(2.0, 1.0)], b=[Sample(1.0, 2.0, peak_mb=30.4)])
    bars = [
        Bar(over="a", under="b", at_most=1.5),
        Bar(over="b", under="a", at_least=0.4),
        Bar(over="b", under="b", clock="wall"),
    ]
    result = report(runs, bars, images=7)
    assert result["images"] == 7
    assert result["a / b"] == [2.0, 2.0, 2.0]
    assert result["b: peak MB"] == 30
    assert result["missed"] == ["a / b"]
    printed = capsys.readouterr().out
    assert "at most 1.5: NO" in printed
    assert "at least 0.4: yes" in printed


def test_cases_take_turns_and_warm_ups_do_not_count():
    order = []

    def make(name):
        def case():
            order.append(name)
            return Sample(len(order), 0.0)

        return case

    runs = time_in_turn({"a": make("a"), "b": make("b")}, rounds=2, print_line=lambda _: None)
    assert order == ["a", "b"] * 3
    assert [each.cpu_s for each in runs["a"]] == [3, 5]


def test_a_run_is_timed_with_its_children_and_its_peak():
    code = "sum(range(10**7))"
    sample = timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))()
    assert sample.cpu_s > 0.05
    # In a new process: in a large one, pages that the system takes back hide the peak.
    code = """
import numpy as np
from pipeline.bench.timing import timed
print(timed(lambda: np.ones(10_000_000))().peak_mb)
"""
    run = [sys.executable, "-c", code]
    if Path("/proc/self/clear_refs").exists():
        assert 79 < float(subprocess.check_output(run, cwd=ROOT)) < 120


def test_the_boundary_peer_has_our_boundary_ap(tmp_path):
    drawing.draw_coco_files(tmp_path, images=4)
    truth, found = str(tmp_path / "truth.json"), str(tmp_path / "found.json")
    ours = evaluate_detections(truth, found, metric="boundary").ap
    assert coco_engines.ENGINES["boundary-iou-api's way"](truth, found, "boundary") == ours
    assert coco_engines.ENGINES["ours"](truth, found, "boundary") == ours
    assert 0 < ours < 1


def test_pasting_is_compared_with_a_program_that_pastes_the_same_masks():
    probs, boxes = drawing.draw_detections(9, (120, 160))
    counts = paste._run_torchvision(probs, boxes, (120, 160))
    own = paste._run_ours(probs, boxes, (120, 160))
    areas = [
        paste.mask_api.area([{"size": [120, 160], "counts": each} for each in side])
        for side in (counts, own)
    ]
    # Torchvision rounds boxes to whole pixels.
    assert np.abs(areas[0] / areas[1] - 1).max() < 0.3


def test_a_peer_that_cannot_be_installed_names_the_flag(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_python(["a"], given="/opt/python") == "/opt/python"
    with pytest.raises(RecipeError, match="--peers-python"):
        find_python(["-r no-such-file.txt"])


def test_the_gpu_table_has_every_variant_and_the_feed(monkeypatch, tmp_path):
    compiled = []
    # Compiling takes minutes: tests/bsm/test_compile.py does it with small models.
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiled.append(model) or model)
    small = tiny_config(kind="plain", source="roi", num_classes=80)
    monkeypatch.setattr(gpu, "_build", lambda *_: build_model(small))
    coco_folder.write_coco_folder(tmp_path / "photos", images=2, objects=2, size_hw=(48, 64))
    shards = tmp_path / "shards"
    ingest_dataset(
        CocoIngest(
            root=str(tmp_path / "photos"), split=coco_folder.SPLIT, out=str(shards), workers=0
        )
    )
    config = gpu.GpuBench(
        heads=("plain",),
        images=(1,),
        variants=("eager", "compile"),
        size_hw=(64, 96),
        objects=2,
        steps=1,
        rounds=1,
        shards=shards,
        out=tmp_path,
    )
    result = gpu.bench_gpu(config, print_line=lambda _: None)
    assert len(compiled) == 1
    table = (tmp_path / "gpu.md").read_text()
    for row in ("plain, step", "plain, inference", "feed, images per CPU second"):
        assert row in table
    rates = [value for key, value in result.items() if key.endswith("images/s")]
    assert len(rates) == 4
    assert min(rates) > 0
    assert 0 <= result["wait for data, % of a step"] <= 100
    assert json.loads((tmp_path / "gpu.json").read_text())["device"] == result["device"]


def test_every_part_of_the_memory_benchmark_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_probe, "_STEPS", 1)
    coco_folder.write_coco_folder(tmp_path, images=3, objects=2, size_hw=(48, 64))
    shards = str(tmp_path / "shards")
    memory_probe.PARTS["ingest"](str(tmp_path), shards)
    manifest = read_manifest(shards)
    assert (manifest.images, manifest.annotations) == (3, 6)
    for part in set(memory_probe.PARTS) - {"ingest"}:
        memory_probe.PARTS[part](shards)


def test_memory_that_grows_is_named(monkeypatch, tmp_path, capsys):
    def run_part(probe, part, arguments):
        folder = Path(arguments[0] if part == "ingest" else Path(arguments[0]).parent)
        images = len(list((folder / coco_folder.SPLIT).iterdir()))
        return {"peak_mb": 100 + images * (part == "ingest"), "cpu_s": 1.0}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(memory, "run_part", run_part)
    result = memory.bench_memory(images=16, objects=1, print_line=lambda _: None)
    assert result["missed"] == ["ingest"]
    assert result["ingest: MB"] == [101, 104, 116]
    assert result["worker: MB"] == [100, 100, 100]
    assert "1.15: NO" in capsys.readouterr().out


def test_the_list_names_every_benchmark(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--list"])
    job = runpy.run_path(str(ROOT / "jobs" / "bench.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(job["BENCHMARKS"])
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert [name for name in job["BENCHMARKS"] if f"`{name}`" not in page] == []


def test_engines_print_their_answer_last(tmp_path):
    drawing.draw_coco_files(tmp_path, images=2)
    command = [sys.executable, coco_engines.__file__, str(tmp_path), "pycocotools", "segm"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer.keys() == {"ap", "cpu_s", "wall_s", "peak_mb"}
    assert answer["peak_mb"] < 1000
