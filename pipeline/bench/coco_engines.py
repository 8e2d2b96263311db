"""Evaluate COCO files once with one program, and print what it took as JSON.

Runs as a script in the environment of a peer, which has neither torch nor this package:

    python pipeline/bench/coco_engines.py FOLDER ENGINE METRIC
"""

import contextlib
import importlib
import io
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

DILATION_RATIO = 0.02


class BoundaryEval(COCOeval):  # type: ignore[misc]
    """Boundary AP by pycocotools' matching and one decoded mask after another (Cheng et al. 2021).

    The overlap of a pair is the lesser of mask IoU and the IoU of the bands inside the outlines.
    """

    def __init__(self, truth: COCO, found: COCO) -> None:
        super().__init__(truth, found, "segm")
        for entry in (*truth.dataset["annotations"], *found.dataset["annotations"]):
            entry["band"] = _to_band(entry["segmentation"])

    def computeIoU(self, image_id: int, category_id: int) -> Any:  # noqa: N802, ANN401  pycocotools'
        """Return the overlaps (detections, truths) of an image and a category."""
        overlaps = super().computeIoU(image_id, category_id)
        if len(overlaps) == 0:
            return overlaps
        truths, found = self._gts[image_id, category_id], self._dts[image_id, category_id]
        best = np.argsort([-each["score"] for each in found], kind="mergesort")
        bands = mask_api.iou(
            [found[index]["band"] for index in best[: self.params.maxDets[-1]]],
            [each["band"] for each in truths],
            [int(each["iscrowd"]) for each in truths],
        )
        return np.minimum(overlaps, bands)


def _to_band(packed: dict[str, Any]) -> dict[str, Any]:
    import cv2  # noqa: PLC0415  only boundary AP needs it

    mask = mask_api.decode(packed)
    height, width = mask.shape
    reach = max(1, round(DILATION_RATIO * float(np.hypot(height, width))))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inside = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=reach)[1:-1, 1:-1]
    band: dict[str, Any] = mask_api.encode(np.asfortranarray(mask - inside))
    return band


def _run_ours(truth: str, found: str, metric: str) -> float:
    from pipeline.evaluation.metrics import evaluate_detections  # noqa: PLC0415  not in peers

    return evaluate_detections(truth, found, metric=metric).ap  # type: ignore[arg-type]


def _run_pycocotools(truth: str, found: str, metric: str) -> float:
    coco = COCO(truth)
    results = coco.loadRes(found)
    return _summarize(COCOeval(coco, results, metric))


def _run_band_by_band(truth: str, found: str, _: str) -> float:
    coco = COCO(truth)
    return _summarize(BoundaryEval(coco, coco.loadRes(found)))


def _run_faster(truth: str, found: str, metric: str) -> float:
    engine: Any = importlib.import_module("faster_coco_eval")

    coco = engine.COCO(truth)
    return _summarize(engine.COCOeval_faster(coco, coco.loadRes(found), metric))


def _run_hotcoco(truth: str, found: str, metric: str) -> float:
    engine: Any = importlib.import_module("hotcoco")

    coco = engine.COCO(truth)
    return _summarize(engine.COCOeval(coco, coco.load_res(found), metric))


def _summarize(evaluation: Any) -> float:  # noqa: ANN401  one of several classes
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


ENGINES: dict[str, Callable[[str, str, str], float]] = {
    "ours": _run_ours,
    "pycocotools": _run_pycocotools,
    "boundary-iou-api's way": _run_band_by_band,
    "faster-coco-eval": _run_faster,
    "hotcoco": _run_hotcoco,
}


def _main(folder: str, engine: str, metric: str) -> None:
    wall = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        ap = ENGINES[engine](f"{folder}/truth.json", f"{folder}/found.json", metric)
    used = resource.getrusage(resource.RUSAGE_SELF)
    answer = {
        "ap": ap,
        "cpu_s": used.ru_utime + used.ru_stime,
        "wall_s": time.perf_counter() - wall,
        "peak_mb": _read_peak_mb(),
    }
    # Engines in compiled code print past Python's stdout: the answer is the last line.
    print("\n" + json.dumps(answer))  # noqa: T201


def _read_peak_mb() -> float | None:
    # Not ru_maxrss, which starts with the memory of the process that started this one.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")]
    return peaks[0] if peaks else None


if __name__ == "__main__":
    _main(*sys.argv[1:])
