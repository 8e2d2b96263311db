#!/usr/bin/env python
"""Measure the cost of the paper's detectors relative to Mask R-CNN, on this machine.

    python jobs/study_cost.py

Prints parameters and multiply-adds of each mask head (for a RoI, and for the whole P2 that fine
stages read), its time for 100 RoIs, and the time of a whole detector (ResNet-50, 800 px, 100, 50
and 20 detections) for inference and for a training step. Times are ratios to Mask R-CNN, timed in
turn in one process; the last column has the paper's ratios on a V100. On a GPU (--use-gpu),
inference runs in float32 and the training step in bfloat16, as in recipes.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bsm.configs.instance import FineStagesConfig, MaskHeadConfig, MaskRCNNConfig
from bsm.configs.shared import FpnBackboneConfig, GuidedFlowConfig, SqueezeConfig
from pipeline.cli import Result, run_verb
from pipeline.errors import RecipeError
from pipeline.recipe import OptimConfig
from pipeline.text import format_markdown

FINE = FineStagesConfig(channels=(48, 24))

DETECTORS = {
    "plain": MaskHeadConfig(kind="plain"),
    "bmask": MaskHeadConfig(kind="bmask"),
    "pointrend": MaskHeadConfig(kind="pointrend"),
    "bsm": MaskHeadConfig(guided_flow=GuidedFlowConfig(weight=0.5)),
    "light": MaskHeadConfig(
        squeeze=SqueezeConfig(variant="light"), guided_flow=GuidedFlowConfig(weight=0.5)
    ),
    "plain-fine": MaskHeadConfig(kind="plain", fine_stages=FINE),
    "bsm-no-warp-fine": MaskHeadConfig(squeeze=SqueezeConfig(warp="none"), fine_stages=FINE),
    "light-fine": MaskHeadConfig(
        squeeze=SqueezeConfig(variant="light", warp="none"), fine_stages=FINE
    ),
}

_ROIS = 100
"""For the time of the heads alone."""

PAPER = {"bmask": 58 / 48, "pointrend": 73 / 48, "bsm": 54 / 48}
"""Inference times of Table 2 relative to Mask R-CNN, one V100."""


def cost(
    *,
    short_edge_px: int = 800,
    long_edge_px: int = 1088,
    detections: tuple[int, ...] = (100, 50, 20),
    rounds: int = 5,
    training_rounds: int = 3,
    training_images: int = 1,
    threads: int = 0,
    use_gpu: bool = False,
) -> Result:
    """Count and time the detectors.

    Args:
        short_edge_px: of the image.
        long_edge_px: of the image.
        detections: numbers of detections per image to time.
        rounds: rounds of inference after the warm-up.
        training_rounds: rounds of training steps after the warm-up; 0 skips them.
        training_images: images per training step.
        threads: number of torch threads; 0 keeps torch's default.
        use_gpu: use the GPU of this machine.
    """
    import torch

    from pipeline.study import cost as engine

    began = time.perf_counter()
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    if use_gpu and not torch.cuda.is_available():
        raise RecipeError(
            "--use-gpu: torch finds no GPU here. Omit the flag to measure on the CPUs."
        )
    device = torch.device("cuda" if use_gpu else "cpu")
    size_hw = (short_edge_px, long_edge_px)
    base = MaskRCNNConfig(backbone=FpnBackboneConfig(name="resnet50", norm="frozen"))
    models = {name: replace(base, mask_head=head) for name, head in DETECTORS.items()}
    counts = {name: engine.count_head(model, size_hw=size_hw) for name, model in models.items()}
    heads = engine.time_heads(
        models,
        num_rois=_ROIS,
        size_hw=size_hw,
        rounds=rounds,
        print_line=print,
        device=device,
    )
    inference = engine.time_inference(
        models,
        detections=detections,
        size_hw=size_hw,
        rounds=rounds,
        print_line=print,
        device=device,
    )
    training = {}
    if training_rounds:
        training = engine.time_training(
            models,
            images=training_images,
            size_hw=size_hw,
            objects=8,
            rounds=training_rounds,
            print_line=print,
            device=device,
            amp=OptimConfig().amp,
        )
    columns = ["head alone", *(f"inference, {n} detections" for n in detections), "training step"]
    header = ["head", "inference, M", "train only, M", "GMAC per RoI", "per image"]
    rows = [[*header, *columns, "paper, inference"]]
    for name, count in counts.items():
        timed = [heads[name, _ROIS], *(inference[name, n] for n in detections)]
        timed += [training[name, training_images]] if training else []
        rows.append(
            [
                name,
                f"{count.parameters_m:.3f}",
                f"{count.train_only_m:.3f}",
                f"{count.gmac_per_roi:.3f}",
                f"{count.gmac_per_image:.3f}",
                *(f"{r.median:.2f} ({r.low:.2f} to {r.high:.2f})" for r in timed),
                *([] if training else ["-"]),
                f"{PAPER[name]:.3f}" if name in PAPER else "-",
            ]
        )
    print(format_markdown(rows))
    return {
        "device": torch.cuda.get_device_name(device) if use_gpu else "cpu",
        "seconds": round(time.perf_counter() - began, 1),
        **{f"gmac_{name}": round(count.gmac_per_roi, 4) for name, count in counts.items()},
        **{f"head_{k}": round(r.median, 3) for (k, _), r in heads.items()},
        **{f"inference_{k}_{n}": round(r.median, 3) for (k, n), r in inference.items()},
        **{f"training_{k}": round(r.median, 3) for (k, _), r in training.items()},
        **(_gpu_results(inference, training) if use_gpu else {}),
    }


def _gpu_results(
    inference: Mapping[tuple[str, int], Any], training: Mapping[tuple[str, int], Any]
) -> Result:
    """Return the times and the memory that are measured on a GPU only."""
    return {
        **{f"inference_{k}_{n}_ms": round(1000 * r.seconds, 2) for (k, n), r in inference.items()},
        **{f"training_{k}_ms": round(1000 * r.seconds, 2) for (k, _), r in training.items()},
        **{f"inference_{k}_{n}_gb": round(r.memory_gb, 3) for (k, n), r in inference.items()},
        **{f"training_{k}_gb": round(r.memory_gb, 3) for (k, _), r in training.items()},
    }


if __name__ == "__main__":
    run_verb(cost)
