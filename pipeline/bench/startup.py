"""Predict one photo with a registered model: the whole command beside the imports it cannot avoid.

The model is small and has random weights, so nearly all of the time is that of starting.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from bsm.build import build_model
from bsm.checkpoints.weights import save_weights
from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig
from bsm.configs.shared import FpnBackboneConfig
from pipeline.bench.peers import cache_folder
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import Case, time_in_turn, timed
from pipeline.data.manifest import Category
from pipeline.recipe import DataConfig, Recipe
from pipeline.registry.provenance import EvaluationRecord
from pipeline.registry.register import register
from pipeline.tracking.runs import open_run

_NAME = "bench-startup"


def bench_startup(*, job: Path, rounds: int, print_line: Callable[[str], None]) -> Result:
    """Time the command of a job file that predicts."""
    folder = cache_folder() / "startup"
    tracking = f"sqlite:///{folder}/runs/mlflow.db"
    if not (folder / "photo.jpg").exists():
        _register_model(folder, tracking)
    words = [f"models:/{_NAME}@champion", str(folder / "photo.jpg"), str(folder / "out"), tracking]
    flags = ("--model", "--images", "--out", "--tracking-uri")
    predict = [str(job), *(word for pair in zip(flags, words, strict=True) for word in pair)]
    cases = {
        "import torch, torchvision.ops": _start("-c", "import torch, torchvision.ops"),
        "predict one photo": _start(*predict),
    }
    runs = time_in_turn(cases, rounds=rounds, print_line=print_line)
    bar = Bar(over="predict one photo", under="import torch, torchvision.ops", at_most=1.4)
    return report(runs, [bar])


def _start(*arguments: str) -> Case:
    command = [sys.executable, *arguments]
    case = timed(lambda: subprocess.run(command, check=True, capture_output=True))  # noqa: S603
    # The peak would be that of this process.
    return lambda: case()._replace(peak_mb=None)


def _register_model(folder: Path, tracking: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = MaskRCNNConfig(
        num_classes=3,
        backbone=FpnBackboneConfig(name="resnet18", norm="frozen", freeze_at=0, fpn_channels=16),
        box_head=BoxHeadConfig(hidden=32),
        mask_head=MaskHeadConfig(channels=16, num_convs=1),
    )
    recipe = Recipe(
        name=_NAME,
        storage=str(folder / "runs"),
        model=model,
        data=DataConfig(short_edge_px=(64,), test_short_edge_px=64, long_edge_px=128),
    )
    categories = [Category(category_id=n, category_index=n, name=f"kind {n}") for n in range(3)]
    weights = folder / "model.safetensors"
    torch.manual_seed(0)
    save_weights(build_model(model), weights)
    register(
        open_run(recipe),
        name=_NAME,
        weights_path=weights,
        recipe=recipe,
        categories=categories,
        evaluation=EvaluationRecord(evaluated_on="nothing", metrics={"mask_ap": 0.0}),
    )
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "photo.jpg"), pixels)
