"""Measure the cost of detectors: parameters, multiply-adds, and time relative to Mask R-CNN.

Times vary with the other load of a machine, so all detectors are timed in turn in one process, and
each time is divided by that of the first detector in the same round.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bsm.build import build_model
from bsm.configs.instance import MaskRCNNConfig
from bsm.instance.mask_heads.build import build_mask_head
from bsm.instance.rcnn import MaskRCNN
from bsm.instance.tensors import Targets
from pipeline.bench.disks import draw_targets

_STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadCost:
    """Parameters and multiply-adds of a mask head."""

    parameters_m: float
    """Millions used at inference."""
    train_only_m: float
    """Millions used only by the losses."""
    gmac_per_roi: float
    """10^9 multiply-adds for the mask of one RoI, without sampling and pooling."""
    gmac_per_image: float
    """10^9 multiply-adds on a whole P2, however many RoIs read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Times divided by those of the reference in the same round."""

    median: float
    low: float
    high: float
    seconds: float
    """Median time, which varies with the load of the machine."""
    memory_gb: float
    """Peak GPU memory of a run without the weights of the models, 10^9 bytes; 0 on a CPU."""


def count_head(config: MaskRCNNConfig, *, size_hw: tuple[int, int]) -> HeadCost:
    """Count the parameters and multiply-adds of a model's mask head, on the meta device.

    Args:
        config: of the model.
        size_hw: of the image, for the multiply-adds on P2.
    """
    with torch.device("meta"):
        head = build_mask_head(config)
        pyramid = _make_pyramid(config, size_hw)

        def predict(num_rois: int) -> tuple[Tensor, float]:
            rois, category = torch.empty(num_rois, 5), torch.zeros(num_rois, dtype=torch.int64)
            with FlopCounterMode(display=False) as counter:
                logits = head.predict(pyramid, rois, category)
            return logits, counter.get_total_flops() / 2e9

        (logits, one), (_, two) = predict(1), predict(2)
        used = torch.autograd.grad(logits.sum(), list(head.parameters()), allow_unused=True)
    in_use = sum(g.numel() for g in used if g is not None)
    total = sum(p.numel() for p in head.parameters())
    return HeadCost(
        parameters_m=in_use / 1e6,
        train_only_m=(total - in_use) / 1e6,
        gmac_per_roi=two - one,
        gmac_per_image=2 * one - two,
    )


def time_heads(
    models: Mapping[str, MaskRCNNConfig],
    *,
    num_rois: int,
    size_hw: tuple[int, int],
    rounds: int,
    print_line: Callable[[str], None],
    device: torch.device,
) -> dict[tuple[str, int], Ratio]:
    """Time the mask heads alone, on the same RoIs of random features, in float32.

    Args:
        models: by name; the first is the reference.
        num_rois: boxes of one image, with sides of 1/16 to all of its sides, log-uniform.
        size_hw: of the image.
        rounds: rounds after the first one, which is a warm-up.
        print_line: called with a line after each round.
        device: of the heads.
    """
    with device:
        heads = {name: build_mask_head(config).eval() for name, config in models.items()}
        pyramid = [
            torch.randn_like(each) for each in _make_pyramid(next(iter(models.values())), size_hw)
        ]
        extent = torch.tensor([size_hw[1], size_hw[0]]).repeat(2)
        sides = 16 ** -torch.rand(num_rois, 2)
        corners = torch.rand(num_rois, 2) * (1 - sides)
        boxes = torch.cat([corners, corners + sides], dim=1) * extent
        rois = torch.cat([torch.zeros(num_rois, 1), boxes], dim=1)
        category = torch.zeros(num_rois, dtype=torch.int64)

    def run(name: str, _: int) -> None:
        with torch.inference_mode():
            heads[name].predict(pyramid, rois, category)

    keys = [(name, num_rois) for name in heads]
    return _time_in_turn(keys, run, rounds=rounds, print_line=print_line, device=device)


def time_inference(
    models: Mapping[str, MaskRCNNConfig],
    *,
    detections: Sequence[int],
    size_hw: tuple[int, int],
    rounds: int,
    print_line: Callable[[str], None],
    device: torch.device,
) -> dict[tuple[str, int], Ratio]:
    """Time the inference of whole detectors on one image, in float32 as in evaluation.

    Args:
        models: by name; the first is the reference.
        detections: numbers of detections per image to time.
        size_hw: of the image.
        rounds: rounds after the first one, which is a warm-up.
        print_line: called with a line after each round.
        device: of the models.
    """
    with device:
        built = {name: _build_detector(config) for name, config in models.items()}
    image = torch.randint(0, 256, (1, 3, *size_hw), dtype=torch.uint8).to(device)
    sizes = torch.tensor([size_hw]).to(device)

    def run(name: str, number: int) -> None:
        model = built[name]
        model.box_head.config = replace(model.box_head.config, detections_per_image=number)
        with torch.inference_mode():
            found = model(image, sizes)
        if int(found.valid.sum()) != number:
            raise AssertionError(f"{name}: {int(found.valid.sum())} detections, not {number}")

    keys = [(name, number) for number in detections for name in built]
    return _time_in_turn(keys, run, rounds=rounds, print_line=print_line, device=device)


def time_training(
    models: Mapping[str, MaskRCNNConfig],
    *,
    images: int,
    size_hw: tuple[int, int],
    objects: int,
    rounds: int,
    print_line: Callable[[str], None],
    device: torch.device,
    amp: bool,
) -> dict[tuple[str, int], Ratio]:
    """Time the losses and gradients of a training step, without the optimizer.

    Args:
        models: by name; the first is the reference.
        images: per step.
        size_hw: of an image.
        objects: per image.
        rounds: rounds after the first one, which is a warm-up.
        print_line: called with a line after each round.
        device: of the models.
        amp: use bfloat16 on a GPU, as recipes do (OptimConfig.amp).
    """
    with device:
        built = {name: build_model(config).train() for name, config in models.items()}
    batch = torch.randint(0, 256, (images, 3, *size_hw), dtype=torch.uint8).to(device)
    sizes = torch.tensor([size_hw] * images).to(device)
    drawn = draw_targets(images, objects, size_hw, with_masks=False)
    targets = Targets(*(None if each is None else each.to(device) for each in drawn))  # type: ignore[arg-type]
    mixed = amp and device.type == "cuda"

    def run(name: str, _: int) -> None:
        model = built[name]
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            losses = model(batch, sizes, targets)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    keys = [(name, images) for name in built]
    return _time_in_turn(keys, run, rounds=rounds, print_line=print_line, device=device)


class _Cost(NamedTuple):
    seconds: float
    memory_gb: float


def _time_in_turn(
    keys: Sequence[tuple[str, int]],
    run: Callable[[str, int], None],
    *,
    rounds: int,
    print_line: Callable[[str], None],
    device: torch.device,
) -> dict[tuple[str, int], Ratio]:
    """Time all keys (model, count) in each round; the model of the first key is the reference."""
    reference = keys[0][0]
    costs: dict[tuple[str, int], list[_Cost]] = {key: [] for key in keys}
    for number in range(rounds + 1):
        for key in keys:
            costs[key].append(_measure(run, key, device=device))
        times = "  ".join(f"{costs[key][-1].seconds:.3f}s" for key in keys)
        print_line(f"round {number}/{rounds}  {times}")
    ratios = {}
    for name, number in keys:
        own, other = costs[name, number][1:], costs[reference, number][1:]
        each = [a.seconds / b.seconds for a, b in zip(own, other, strict=True)]
        ratios[name, number] = Ratio(
            median=statistics.median(each),
            low=min(each),
            high=max(each),
            seconds=statistics.median(one.seconds for one in own),
            memory_gb=max(one.memory_gb for one in own),
        )
    return ratios


def _measure(
    run: Callable[[str, int], None], key: tuple[str, int], *, device: torch.device
) -> _Cost:
    """Time one run, synchronized with the device."""
    if device.type != "cuda":
        began = time.perf_counter()
        run(*key)
        return _Cost(time.perf_counter() - began, 0.0)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    run(*key)
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    return _Cost(seconds, (torch.cuda.max_memory_allocated(device) - before) / 1e9)


def _build_detector(config: MaskRCNNConfig) -> MaskRCNN:
    """Build a model with random weights that returns the maximum number of detections."""
    box_head = replace(config.box_head, score_threshold=0.0, nms_iou=1.0)
    model = build_model(replace(config, box_head=box_head)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == config.num_classes + 1:
                # Bias against background, or rounding would decide the number of detections.
                module.bias[-1] = -5.0
    return model


def _make_pyramid(config: MaskRCNNConfig, size_hw: tuple[int, int]) -> list[Tensor]:
    """Make P2 to P5 of an image, on the device of the context."""
    channels, (height, width) = config.backbone.fpn_channels, size_hw
    return [torch.empty(1, channels, -(-height // s), -(-width // s)) for s in _STRIDES]
