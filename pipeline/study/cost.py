"""What a detector costs: parameters, work for a RoI, and time next to Mask R-CNN's.

Times swing with whatever else a machine does, so detectors are timed in turn in one process, round
after round, and what is told is the ratio to the first one in the same round.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bsm.build import build_model
from bsm.configs.instance import MaskHeadConfig, MaskRCNNConfig
from bsm.field import field_frame_xyxy, mask_to_field
from bsm.instance.mask_heads.build import build_mask_head
from bsm.instance.rcnn import MaskRCNN
from bsm.instance.tensors import Targets

_STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadCost:
    """A mask head, by count."""

    parameters_m: float
    """Millions in use at inference."""
    train_only_m: float
    """Millions that only the losses use."""
    gmac_per_roi: float
    """10^9 multiply-adds of one RoI's mask; sampling and pooling are not counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """A time next to the reference's in the same round."""

    median: float
    low: float
    high: float
    seconds: float
    """Median of the time itself, for a feeling of scale; it swings with the machine."""
    memory_gb: float
    """The most that a run takes on a GPU beside the weights of all models, 10^9 bytes; 0 on a CPU,
    where nobody counts it."""


def head_cost(config: MaskHeadConfig, *, in_channels: int, num_classes: int) -> HeadCost:
    """Count a head's parameters and work on the meta device: nothing is computed."""
    with torch.device("meta"):
        head = build_mask_head(in_channels, num_classes=num_classes, config=config)
        pyramid = [torch.empty(1, in_channels, 256 // s, 256 // s) for s in _STRIDES]
        rois, category = torch.empty(1, 5), torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            logits = head.predict(pyramid, rois, category)
        used = torch.autograd.grad(logits.sum(), list(head.parameters()), allow_unused=True)
    in_use = sum(g.numel() for g in used if g is not None)
    total = sum(p.numel() for p in head.parameters())
    return HeadCost(
        parameters_m=in_use / 1e6,
        train_only_m=(total - in_use) / 1e6,
        gmac_per_roi=counter.get_total_flops() / 2e9,
    )


def inference_ratios(
    models: Mapping[str, MaskRCNNConfig],
    *,
    detections: Sequence[int],
    size_hw: tuple[int, int],
    rounds: int,
    say: Callable[[str], None],
    device: torch.device,
) -> dict[tuple[str, int], Ratio]:
    """Time whole detectors on one image that gives just so many detections.

    Args:
        models: by name; the first is the reference.
        detections: numbers of detections to time at.
        size_hw: of the image.
        rounds: how often all are timed in turn, after one round that does not count.
        say: gets a line after each round.
        device: where; in float32, as evaluation works.
    """
    with device:
        built = {name: _with_detections(config) for name, config in models.items()}
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
    return _in_turn(keys, run, rounds=rounds, say=say, reference=next(iter(built)), device=device)


def training_ratios(
    models: Mapping[str, MaskRCNNConfig],
    *,
    images: int,
    size_hw: tuple[int, int],
    objects: int,
    rounds: int,
    say: Callable[[str], None],
    device: torch.device,
    amp: bool,
) -> dict[tuple[str, int], Ratio]:
    """Time a training step without its optimizer: losses and gradients of a few images.

    Args:
        models: by name; the first is the reference.
        images: in the step.
        size_hw: of an image.
        objects: in an image.
        rounds: how often all are timed in turn, after one round that does not count.
        say: gets a line after each round.
        device: where.
        amp: in bfloat16 on a GPU, as recipes train there (OptimConfig.amp).
    """
    with device:
        built = {name: build_model(config).train() for name, config in models.items()}
    batch = torch.randint(0, 256, (images, 3, *size_hw), dtype=torch.uint8).to(device)
    sizes = torch.tensor([size_hw] * images).to(device)
    targets = _disks(images, objects, size_hw, device=device)
    mixed = amp and device.type == "cuda"

    def run(name: str, _: int) -> None:
        model = built[name]
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            losses = model(batch, sizes, targets)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    keys = [(name, images) for name in built]
    return _in_turn(keys, run, rounds=rounds, say=say, reference=next(iter(built)), device=device)


class _Spent(NamedTuple):
    seconds: float
    memory_gb: float


def _in_turn(
    keys: Sequence[tuple[str, int]],
    run: Callable[[str, int], None],
    *,
    rounds: int,
    say: Callable[[str], None],
    reference: str,
    device: torch.device,
) -> dict[tuple[str, int], Ratio]:
    spent: dict[tuple[str, int], list[_Spent]] = {key: [] for key in keys}
    for number in range(rounds + 1):
        for key in keys:
            spent[key].append(_measured(run, key, device=device))
        say(
            f"round {number} of {rounds}: "
            + "  ".join(f"{spent[k][-1].seconds:.3f}s" for k in keys)
        )
    ratios = {}
    for name, number in keys:
        own, other = spent[name, number][1:], spent[reference, number][1:]
        each = [a.seconds / b.seconds for a, b in zip(own, other, strict=True)]
        ratios[name, number] = Ratio(
            median=statistics.median(each),
            low=min(each),
            high=max(each),
            seconds=statistics.median(one.seconds for one in own),
            memory_gb=max(one.memory_gb for one in own),
        )
    return ratios


def _measured(
    run: Callable[[str, int], None], key: tuple[str, int], *, device: torch.device
) -> _Spent:
    """Time one run from an idle device to an idle device."""
    if device.type != "cuda":
        began = time.perf_counter()
        run(*key)
        return _Spent(time.perf_counter() - began, 0.0)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    run(*key)
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    return _Spent(seconds, (torch.cuda.max_memory_allocated(device) - before) / 1e9)


def _with_detections(config: MaskRCNNConfig) -> MaskRCNN:
    """Build a model whose random weights find as many objects as they are asked for."""
    box_head = replace(config.box_head, score_threshold=0.0, nms_iou=1.0)
    model = build_model(replace(config, box_head=box_head)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == config.num_classes + 1:
                # Away from background, or rounding decides what is found.
                module.bias[-1] = -5.0
    return model


def _disks(images: int, objects: int, size_hw: tuple[int, int], *, device: torch.device) -> Targets:
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor([size_hw[1], size_hw[0]]) / 4
    corner = torch.rand(images, objects, 2, generator=generator) * extent * 2.5
    boxes = torch.cat(
        [corner, corner + extent * (0.3 + torch.rand(images, objects, 2, generator=generator))], -1
    )
    at = torch.arange(112) + 0.5 - 56
    disk = mask_to_field((at[:, None] ** 2 + at**2 < 37**2)[None])[0]
    targets = Targets(
        boxes_xyxy=boxes,
        category_index=torch.zeros(images, objects, dtype=torch.int64),
        valid=torch.ones(images, objects, dtype=torch.bool),
        squeeze_field=disk.expand(images, objects, -1, -1),
        field_frame_xyxy=field_frame_xyxy(boxes),
        sample_seed=torch.arange(images),
    )
    return Targets(*(None if each is None else each.to(device) for each in targets))  # type: ignore[arg-type]
