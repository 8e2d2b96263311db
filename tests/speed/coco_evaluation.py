#!/usr/bin/env python
"""Measure time and memory of an evaluation: 5,000 drawn images, 100 detections on each.

    python tests/speed/coco_evaluation.py make --folder runs/speed
    python tests/speed/coco_evaluation.py run --folder runs/speed --engine ours --metric boundary

Each run is a separate process that starts from the two files. faster-coco-eval is not a dependency
of the project: run pip install faster-coco-eval==1.8.0 first.
"""

import contextlib
import io
import json
import resource
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from pycocotools import mask as mask_api

HEIGHT, WIDTH = 480, 640
CATEGORIES = 80
OUTLINE_POINTS = 24

Engine = Literal["ours", "pycocotools", "faster-coco-eval"]


def make(
    *, folder: Path, images: int = 5000, truths: int = 36_000, detections_each: int = 100
) -> None:
    """Draw blobs of all sizes, two imprecise detections of each blob, and false positives.

    Args:
        folder: for truth.json and found.json.
        images: number of images of 640 x 480 pixels.
        truths: number of blobs, on random images.
        detections_each: number of detections per image.
    """
    g = np.random.default_rng(0)
    outlines = [_draw_outline(g) for _ in range(truths)]
    kinds = g.integers(1, CATEGORIES + 1, truths).tolist()
    image_of = g.integers(1, images + 1, truths).tolist()
    annotations = [
        _make_entry(outline, image_id, kind) | {"id": number, "iscrowd": 0}
        for number, (outline, image_id, kind) in enumerate(
            zip(outlines, image_of, kinds, strict=True), start=1
        )
    ]
    found: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in range(1, images + 1)}
    for outline, image_id, kind in zip(outlines, image_of, kinds, strict=True):
        for _ in range(2):
            blur = float(g.uniform(0.01, 0.3))
            moved = (
                outline + blur * np.ptp(outline, axis=0) * g.normal(size=(OUTLINE_POINTS, 2)) / 2
            )
            score = float(np.clip(1 - 2 * blur + 0.2 * g.normal(), 0, 1))
            found[image_id].append(_make_entry(moved, image_id, kind) | {"score": score})
    for image_id, entries in found.items():
        while len(entries) < detections_each:
            kind, score = int(g.integers(1, CATEGORIES + 1)), float(g.beta(1, 6))
            entries.append(_make_entry(_draw_outline(g), image_id, kind) | {"score": score})
    truth = {
        "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in found],
        "categories": [{"id": n, "name": f"kind {n}"} for n in range(1, CATEGORIES + 1)],
        "annotations": annotations,
    }
    rows = [entry for entries in found.values() for entry in entries[:detections_each]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(rows))
    print(f"{images} images, {truths} truths, {len(rows)} detections in {folder}")


def run(*, folder: Path, engine: Engine = "ours", metric: Literal["segm", "boundary"]) -> None:
    """Evaluate once; print AP, seconds and peak memory.

    Args:
        folder: from `make`.
        engine: this project or another program.
        metric: mask or boundary AP.
    """
    truth, found = str(folder / "truth.json"), str(folder / "found.json")
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        ap = (
            _run_pipeline(truth, found, metric)
            if engine == "ours"
            else _run_cocoeval(truth, found, engine, metric)
        )
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{engine} {metric}: AP {ap!r}, {seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of "
        f"CPU, {used.ru_maxrss / 1024:.0f} MiB"
    )


def _run_pipeline(truth: str, found: str, metric: Literal["segm", "boundary"]) -> float:
    from pipeline.evaluation.metrics import evaluate_detections

    return evaluate_detections(truth, found, metric=metric).ap


def _run_cocoeval(truth: str, found: str, engine: Engine, metric: str) -> float:
    if engine == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    coco = COCO(truth)
    evaluation = COCOeval(coco, coco.loadRes(found), metric)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def _draw_outline(g: np.random.Generator) -> np.ndarray:
    """Draw a blob with a log-uniform radius of 4 to 160 px: (points, xy)."""
    radius = float(np.exp(g.uniform(np.log(4), np.log(160))))
    angles = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    radii = radius * (
        1 + 0.3 * np.sin(angles * g.integers(1, 5)) + 0.1 * g.normal(size=len(angles))
    )
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return around + g.uniform((0, 0), (WIDTH, HEIGHT))


def _make_entry(outline: np.ndarray, image_id: int, kind: int) -> dict[str, Any]:
    inside = np.clip(outline, 0, (WIDTH, HEIGHT))
    (packed,) = mask_api.frPyObjects([inside.ravel().tolist()], HEIGHT, WIDTH)
    return {
        "image_id": image_id,
        "category_id": kind,
        "area": int(mask_api.area(packed)),
        "bbox": mask_api.toBbox(packed).tolist(),
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()},
    }


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"make": make, "run": run})
