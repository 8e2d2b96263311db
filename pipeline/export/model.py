"""Export a registered model to one file that carries all that is needed to use it."""

import logging
import time
from pathlib import Path
from typing import Any

from pipeline import checksums
from pipeline.errors import RegistryError
from pipeline.export.graph import Format, check_packages, get_pad_multiple, trace, write_graph
from pipeline.recipe import fingerprint
from pipeline.serving.exported import ExportInfo
from pipeline.serving.predictor import Predictor

_log = logging.getLogger(__name__)


def export_model(
    model: Predictor,
    uri: str,
    out: str | Path,
    *,
    file_format: Format,
    fixed_hw: tuple[int, int] | None = None,
    data_license: str = "",
) -> dict[str, Any]:
    """Export a model.

    Args:
        model: on the CPU.
        uri: models:/NAME/VERSION.
        out: file to write.
        file_format: onnx or torch-export.
        fixed_hw: the only size of the input, padded up to the model's multiple; None takes any.
        data_license: of the training data, as the file states it.

    Returns:
        file, megabytes, seconds, sha256 and the input's sides, for the RESULT line.

    Raises:
        RegistryError: the model cannot be exported.
        SetupError: the packages of the format are not installed.
    """
    check_packages(file_format)
    started = time.perf_counter()
    config = model.recipe.model
    if config.task == "refine":
        raise RegistryError(
            f"{uri} is a refiner, which is not exported: it cuts a photo into as many crops as the "
            "photo's masks need. Use it with: bsm refine --model MODEL"
        )
    step = get_pad_multiple(config)
    if fixed_hw is not None:
        fixed_hw = (fixed_hw[0] + -fixed_hw[0] % step, fixed_hw[1] + -fixed_hw[1] % step)
    info = describe(model, uri, fixed_hw=fixed_hw, data_license=data_license)
    _log.info("export: tracing the model")
    program = trace(model.model, config, fixed_hw=fixed_hw)
    _log.info("export: writing %s", out)
    path = Path(out)
    write_graph(program, info, path, file_format=file_format)
    return {
        "file": str(path),
        "format": file_format,
        "model": uri,
        "input_hw": list(fixed_hw) if fixed_hw else f"multiples of {step}",
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "sha256": checksums.hash_bytes(path.read_bytes()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def describe(
    model: Predictor, uri: str, *, fixed_hw: tuple[int, int] | None, data_license: str
) -> ExportInfo:
    """Describe a model for users of its file."""
    recipe = model.recipe
    config: Any = recipe.model
    is_instance = config.task == "instance"
    return ExportInfo(
        model=uri,
        task=config.task,
        categories=model.categories,
        pixel_mean=tuple(config.backbone.pixel_mean),
        pixel_std=tuple(config.backbone.pixel_std),
        short_edge_px=recipe.data.test_short_edge_px if is_instance else None,
        long_edge_px=recipe.data.long_edge_px if is_instance else None,
        size_hw=None if is_instance else recipe.data.test_size_hw,
        pad_multiple=get_pad_multiple(config),
        fixed_hw=fixed_hw,
        detections=config.box_head.detections_per_image if is_instance else None,
        license=recipe.tracking.license,
        data_license=data_license,
        recipe_fingerprint=fingerprint(recipe),
    )
