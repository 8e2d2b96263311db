"""Trace a model to a graph with torch.export, and write it as ONNX or as a torch.export archive."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bsm.backbone import PAD_MULTIPLE
from bsm.configs.models import ModelConfig
from pipeline.errors import RegistryError, SetupError
from pipeline.serving.exported import INFO_KEY, INPUTS, OUTPUTS, ExportInfo

Format = Literal["onnx", "torch-export"]

OPSET, DEFORM_OPSET = 18, 19
"""Smallest ONNX versions with every operator of the graphs, without and with deformable
convolutions."""

_TRACED_CELLS = (5, 7)
"""Size of the traced photo in multiples of the padding: different sides, neither 0 nor 1."""
_OTHER_CELLS = (8, 3)
"""Another size, at which a traced model must run too."""
_MIN_CELLS = 3
"""P6 has a stride of 64, and torch.export takes a side of one cell for a constant. ONNX files have
no such check, and take less."""
_MAX_CELLS = 512
"""Largest side that the graph is declared for, in multiples of the padding."""


class InstanceGraph(nn.Module):
    """A detector whose outputs are a plain tuple; see serving/exported.py."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, image_sizes_hw: Tensor) -> tuple[Tensor, ...]:
        """Detect the objects of one photo."""
        return tuple(self.model(images, image_sizes_hw))


class SemanticGraph(InstanceGraph):
    """A model of label maps; its output is a tuple too."""

    def forward(self, images: Tensor, image_sizes_hw: Tensor) -> tuple[Tensor, ...]:
        """Compute the logits of one photo."""
        return (self.model(images, image_sizes_hw),)


def get_pad_multiple(config: ModelConfig) -> int:
    """Return the multiple of pixels to which the model pads its input."""
    return PAD_MULTIPLE if config.task == "instance" else getattr(config, "output_stride")  # noqa: B009


def trace(
    model: nn.Module, config: ModelConfig, *, fixed_hw: tuple[int, int] | None = None
) -> torch.export.ExportedProgram:
    """Trace a model in evaluation mode, on the CPU.

    Args:
        model: of the config; its parameters lose their gradients.
        config: of the model.
        fixed_hw: the only size of the input, padded; None makes both sides variable.

    Raises:
        RegistryError: torch cannot trace the model.
    """
    if fixed_hw is None and "swin" in config.backbone.name:
        # torch.export simplifies the arithmetic of its windows for more than nine minutes.
        raise RegistryError(
            f"torch.export does not trace {config.backbone.name} for photos of any size in useful "
            "time; export it for one size, for instance: --size 800 1344"
        )
    step = get_pad_multiple(config)
    graph = (InstanceGraph if config.task == "instance" else SemanticGraph)(model)
    graph.eval().requires_grad_(requires_grad=False)
    height, width = fixed_hw or (step * _TRACED_CELLS[0], step * _TRACED_CELLS[1])
    inputs = _make_inputs(height, width)
    smallest = _MIN_CELLS if config.task == "instance" else 1
    rows, columns = (
        torch.export.Dim(name, min=smallest, max=_MAX_CELLS) for name in ("rows", "columns")
    )
    sides = None if fixed_hw else {2: step * rows, 3: step * columns}
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(graph, inputs, dynamic_shapes=(sides, None), strict=False)
            if fixed_hw is None:
                # A check of a size that the trace assumed is in the program, but not in ONNX.
                program.module()(*_make_inputs(step * _OTHER_CELLS[0], step * _OTHER_CELLS[1]))
            return program
    except Exception as error:  # torch raises many types
        advice = "" if fixed_hw else "For a graph of one size, add for instance: --size 800 1344. "
        raise RegistryError(
            f"torch.export cannot trace this {config.task} model: {_shorten(error)}. {advice}"
            "docs/export.md lists the heads and backbones that can be exported"
        ) from error


def write_graph(
    program: torch.export.ExportedProgram, info: ExportInfo, out: Path, *, file_format: Format
) -> None:
    """Write a traced model with its description, atomically.

    Raises:
        RegistryError: the graph has an operation without an equivalent in the format.
        SetupError: the packages of the format are not installed.
        StorageError: the file cannot be written.
    """
    partial = out.with_name(f"{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    if file_format == "onnx":
        _write_onnx(program, info, partial)
    else:
        torch.export.save(program, partial, extra_files={f"{INFO_KEY}.json": info.to_json()})
    partial.replace(out)


def check_packages(file_format: Format) -> None:
    """Raise a SetupError if a package of the format is missing."""
    missing = [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if file_format == "onnx" and importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SetupError(
            f"--format onnx needs {', '.join(missing)}, which this environment lacks",
            "type: pip install onnx onnxscript onnxruntime, or take --format torch-export",
        )


def _make_inputs(height: int, width: int) -> tuple[Tensor, Tensor]:
    pixels = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    return pixels, torch.tensor([[height - 1, width - 2]])


def _write_onnx(program: torch.export.ExportedProgram, info: ExportInfo, path: Path) -> None:
    try:
        with _quiet():
            # onnxscript's optimizer leaves a graph that refers to values it removed, and
            # runtimes optimize on their own.
            exported: Any = torch.onnx.export(
                program,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS[info.task]),
                opset_version=DEFORM_OPSET if _has_deform_conv(program) else OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types
        raise RegistryError(
            f"the model cannot be written as ONNX: {_shorten(error)}. docs/export.md lists what "
            "can; --format torch-export may"
        ) from error
    exported.model.metadata_props[INFO_KEY] = info.to_json()
    exported.model.producer_name = "boundary-squeeze"
    exported.save(path)


def _has_deform_conv(program: torch.export.ExportedProgram) -> bool:
    return any("deform_conv2d" in str(node.target) for node in program.graph.nodes)


def _shorten(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporters log about their own internals."""
    names = ("torch.onnx", "torch.export", "onnxscript")
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
