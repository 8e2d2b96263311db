"""Evaluate drawn COCO files: ours beside pycocotools, faster-coco-eval and hotcoco.

Each run is a process of its own, from starting Python and reading two files to AP.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.bench import coco_engines
from pipeline.bench.drawing import DETECTIONS_PER_IMAGE, draw_coco_files
from pipeline.bench.peers import cache_folder, find_python
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import Case, Sample, time_in_turn
from pipeline.errors import RecipeError

PEERS = (
    "faster-coco-eval==1.8.0",
    "hotcoco==1.3.0",
    "pycocotools==2.0.11",
    "opencv-python-headless==5.0.0.93",
)

_ENGINES = {
    "segm": ("ours", "pycocotools", "faster-coco-eval", "hotcoco"),
    "boundary": ("ours", "boundary-iou-api's way"),
}
"""hotcoco has no boundary AP; faster-coco-eval's took ten times as long as ours."""

_BARS = {
    "segm": {"pycocotools": 3.0, "faster-coco-eval": 1.0},
    "boundary": {"boundary-iou-api's way": 10.0},
}


def bench_evaluation(
    *,
    metric: str,
    images: int,
    rounds: int,
    threads: int,
    peers_python: str,
    print_line: Callable[[str], None],
) -> Result:
    """Time a metric with every engine, and check that all agree."""
    python = find_python(PEERS, given=peers_python)
    folder = cache_folder() / f"coco-{images}"
    print_line(f"drawing {images} images in {folder}, unless they are there")
    draw_coco_files(folder, images=images)
    found: dict[str, float] = {}

    def make(engine: str) -> Case:
        program = sys.executable if engine == "ours" else python

        def case() -> Sample:
            answer = _run([program, coco_engines.__file__, str(folder), engine, metric], threads)
            found[engine] = answer.pop("ap")
            return Sample(**answer)

        return case

    cases = {engine: make(engine) for engine in _ENGINES[metric]}
    runs = time_in_turn(cases, rounds=rounds, warm_ups=0, print_line=print_line)
    if max(found.values()) - min(found.values()) > 1e-9:
        raise AssertionError(f"AP differs: {found}")
    bars = [
        Bar(over=engine, under="ours", at_least=_BARS[metric].get(engine))
        for engine in _ENGINES[metric][1:]
    ]
    detections = DETECTIONS_PER_IMAGE * images
    return report(runs, bars, metric=metric, images=images, detections=detections, ap=found["ours"])


def _run(command: list[str], threads: int) -> dict[str, float]:
    names = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    environment["PYTHONPATH"] = str(Path(coco_engines.__file__).parents[2])
    done = subprocess.run(  # noqa: S603  our own file
        command, check=False, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RecipeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer
