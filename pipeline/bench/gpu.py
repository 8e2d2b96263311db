"""Measure training steps, inference and the feed on this machine's GPU, and write a table.

Without a GPU it runs on the CPU, in float32. Every variant of a model trains the same batch in
turn, by the step of the training loop: transfer, losses, gradients, clipping and SGD.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from bsm.build import build_model
from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.shared import FpnBackboneConfig
from pipeline import storage
from pipeline.bench.detectors import HEADS
from pipeline.bench.disks import draw_targets
from pipeline.bench.our_feed import feed_batches, make_data_config
from pipeline.bench.report import Result
from pipeline.bench.timing import Case, Runs, Spread, cpu_seconds, time_in_turn, timed
from pipeline.data.batch import Batch
from pipeline.recipe import OptimConfig
from pipeline.text import format_markdown
from pipeline.training.optim import build_optimizer
from pipeline.training.step import StepMetrics, Summary, WorkerContext, train_step

Variant = Literal["eager", "compile", "cuda-graphs", "channels-last", "channels-last+compile"]

_BARS = {("plain", 16): 150.0, ("light", 16): 135.0}
"""Images per second of a step at 800 px in bfloat16, by head and images."""
_OPTIM = OptimConfig(clip_norm=35.0, lr_per_image=1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuBench:
    """The parts to measure."""

    heads: Sequence[str]
    images: Sequence[int]
    """Of a step, each in turn."""
    variants: Sequence[Variant]
    size_hw: tuple[int, int]
    objects: int
    """Per image."""
    steps: int
    """Of a run, between two waits for the device."""
    rounds: int
    shards: Path | None
    """For the feed and the wait for it; None leaves both out."""
    out: Path
    """Folder for gpu.md and gpu.json."""


def bench_gpu(config: GpuBench, *, print_line: Callable[[str], None]) -> Result:
    """Measure, print and write the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rows = [["what", "images", "variant", "images/s", "ms", "peak, GB", "bar"]]
    result: Result = {"device": name, "size_hw": config.size_hw, "objects": config.objects}
    for head in config.heads:
        for images in config.images:
            for line in _measure_model(config, head, images, device, print_line):
                rows.append(line.to_row())
                result |= line.to_result()
    if config.shards is not None:
        wait_bar = "at most 3 %" if device.type == "cuda" else "-"
        rates = _measure_feed(config, device)
        result |= rates
        for key, value in rates.items():
            bar = wait_bar if key.startswith("wait") else "-"
            rows.append(
                [key, str(config.images[-1]), config.variants[0], f"{value:.3g}", "-", "-", bar]
            )
    precision = "bfloat16" if device.type == "cuda" else "float32"
    height, width = config.size_hw
    title = f"{name}, torch {torch.__version__}, {precision}, {height} x {width} px, ResNet-50"
    table = f"{title}\n\n{format_markdown(rows)}\n"
    print(table)  # noqa: T201  the answer of the command
    storage.write_bytes_atomic(str(config.out / "gpu.md"), table.encode())
    storage.write_bytes_atomic(str(config.out / "gpu.json"), json.dumps(result, indent=1).encode())
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """A measured case."""

    what: str
    head: str
    images: int
    variant: str
    seconds: Spread
    """Of one step or one batch."""
    peak_gb: float

    def to_row(self) -> list[str]:
        """Return the cells of the table."""
        bar = _BARS.get((self.head, self.images)) if self.what == "step" else None
        rates = [self.images / each for each in (self.seconds.high, self.seconds.low)]
        return [
            f"{self.head}, {self.what}",
            str(self.images),
            self.variant,
            f"{self.images / self.seconds.median:.1f} ({rates[0]:.1f} to {rates[1]:.1f})",
            f"{1000 * self.seconds.median:.1f}",
            f"{self.peak_gb:.1f}" if self.peak_gb else "-",
            f"at least {bar:g}" if bar and self.peak_gb else "-",
        ]

    def to_result(self) -> Result:
        """Return the rate by its name."""
        key = f"{self.head}, {self.what}, {self.images} images, {self.variant}"
        return {f"{key}: images/s": round(self.images / self.seconds.median, 2)}


def _measure_model(
    config: GpuBench,
    head: str,
    images: int,
    device: torch.device,
    print_line: Callable[[str], None],
) -> Iterator[_Line]:
    """Measure the variants of a model in turn; each has its own copy of the same weights."""
    cases: dict[tuple[str, str], Callable[[], object]] = {}
    # Another number of images would make the shapes of compiled graphs dynamic.
    torch.compiler.reset()
    batch = _make_batch(config, images, device)
    for variant in config.variants:
        cases["step", variant] = _make_step(config, _build(head, variant, device), variant, batch)
        if "compile" not in variant and variant != "cuda-graphs":
            cases["inference", variant] = _make_inference(
                config, _build(head, variant, device), batch, device
            )
    peaks = dict.fromkeys(cases, 0.0)
    runs: Runs = time_in_turn(
        {
            f"{head}, {what}, {images} images, {variant}": _synchronized(
                run, device, peaks, (what, variant)
            )
            for (what, variant), run in cases.items()
        },
        rounds=config.rounds,
        print_line=print_line,
    )
    for (what, name), samples in zip(cases, runs.values(), strict=True):
        yield _Line(
            what=what,
            head=head,
            images=images,
            variant=name,
            seconds=Spread.of([each.wall_s / config.steps for each in samples]),
            peak_gb=peaks[what, name],
        )


def _synchronized(
    run: Callable[[], object],
    device: torch.device,
    peaks: dict[tuple[str, str], float],
    key: tuple[str, str],
) -> Case:
    """Make a case that waits for the device at its end, and notes the most memory."""
    if device.type != "cuda":
        return timed(run)

    def run_to_the_end() -> None:
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        peaks[key] = torch.cuda.max_memory_allocated(device) / 1e9

    return timed(run_to_the_end)


def _build(head: str, variant: str, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    backbone = FpnBackboneConfig(name="resnet50", weights="", norm="frozen", freeze_at=2)
    model = build_model(MaskRCNNConfig(backbone=backbone, mask_head=HEADS[head])).to(device)
    if "channels-last" in variant:
        model = cast(Any, model).to(memory_format=torch.channels_last)
    return model


def _make_batch(config: GpuBench, images: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([config.size_hw] * images)
    batch = Batch(
        images=torch.randint(
            0, 256, (images, 3, *config.size_hw), dtype=torch.uint8, generator=generator
        ),
        image_sizes_hw=sizes,
        targets=draw_targets(images, config.objects, config.size_hw),
        image_id=torch.arange(images),
        original_sizes_hw=sizes,
        lanes=torch.arange(images),
    )
    return batch.pin_memory() if device.type == "cuda" else batch


def _make_step(
    config: GpuBench, model: nn.Module, variant: str, batch: Batch
) -> Callable[[], object]:
    model.train()
    optimizer = build_optimizer(model, optim=_OPTIM)
    step_model = _compile(model, variant)

    def run() -> None:
        for _ in range(config.steps):
            train_step(
                step_model,
                optimizer,
                microbatches=(batch,),
                step=0,
                optim=_OPTIM,
                device=next(model.parameters()).device,
            )

    return run


def _compile(model: nn.Module, variant: str) -> nn.Module:
    if variant == "cuda-graphs":
        return cast(nn.Module, torch.compile(model, mode="reduce-overhead", dynamic=False))
    if "compile" in variant:
        return cast(nn.Module, torch.compile(model, dynamic=False))
    return model


def _make_inference(
    config: GpuBench, model: nn.Module, batch: Batch, device: torch.device
) -> Callable[[], object]:
    model.eval()

    def run() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
        ):
            for _ in range(config.steps):
                on_device = batch.to(device)
                model(on_device.images, on_device.image_sizes_hw)

    return run


def _measure_feed(config: GpuBench, device: torch.device) -> dict[str, float]:
    """Measure the feed alone, and how long training in the first variant waits for it."""
    assert config.shards is not None  # noqa: S101  checked by the caller
    head, images = config.heads[0], config.images[-1]
    steps = max(2, config.steps * config.rounds)
    data = make_data_config(config.shards, short_edge_px=(min(config.size_hw),))
    with_masks = HEADS[head].targets.source == "roi"
    began = cpu_seconds()
    batches = feed_batches(data, images=steps * images, batch=images, with_masks=with_masks)
    fed = sum(len(each.images) for each in batches)
    per_core = fed / (cpu_seconds() - began)
    model = _build(head, config.variants[0], device).train()
    optimizer = build_optimizer(model, optim=_OPTIM)
    metrics = StepMetrics(WorkerContext(device=device))
    batches = feed_batches(data, images=2 * steps * images, batch=images, with_masks=with_masks)
    for number in range(2 * steps):
        if number == steps:  # the first half is a warm-up
            metrics.reduce()
        batch = metrics.next_batch(batches)
        output = train_step(
            model, optimizer, microbatches=(batch,), step=0, optim=_OPTIM, device=device
        )
        metrics.add(output, step=number, epoch=0, lr=0.0, microbatches=(batch,))
    summary = metrics.reduce()
    assert isinstance(summary, Summary)  # noqa: S101  random weights give finite losses
    measured = {
        "feed, images per CPU second": per_core,
        "wait for data, % of a step": 100 * summary.data_wait_s / summary.seconds,
        "steps with the feed, images/s": steps * images / summary.seconds,
    }
    return {name: round(value, 3) for name, value in measured.items()}
