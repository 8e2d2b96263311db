"""Weights in and out of files, strictly: nothing is executed, nothing is skipped in silence."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_COUNTER = "num_batches_tracked"
"""Batch norm counts its steps under this name; the count is no weight, and frozen norms have
none."""


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the state of a model as safetensors."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, path)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a model from a .safetensors file or a file of tensors that torch.save wrote.

    Raises:
        ValueError: the file cannot be read, or its keys or shapes are not those of the model; every
            difference is listed.
    """
    copy_state(model, read_weights(path), source=str(path))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a file of named tensors without executing anything in it.

    Wrappers that training codes put around the tensors ("model", "state_dict", "module.") are taken
    off.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"weights {str(path)!r}: no such file. Give a .safetensors or .pth file, or "
            "leave it empty for a random start."
        )
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no weights make a reader raise anything
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"weights {file}: not a plain file of tensors ({first_line}). Only .safetensors and "
            "what torch.save writes of a state_dict are read; nothing in a file is executed."
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ValueError(
            f"weights {file}: holds no names with tensors. Save model.state_dict(), or use "
            ".safetensors."
        )
    tensors = cast(Mapping[str, Tensor], content)
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def copy_state(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    allowed_left_over: Collection[str] = (),
) -> None:
    """Copy named tensors into a model, all of them or none.

    Names may differ in "." and "_": timm flattens "stages.0" when it cuts features from a model.

    Args:
        model: What is filled.
        tensors: Names and values.
        source: Names the tensors in errors.
        allowed_left_over: Names that the tensors may have and the model not.

    Raises:
        ValueError: anything is missing, left over or of another shape; every case is listed.
    """
    own = {_plain(key): (key, value) for key, value in model.state_dict().items()}
    given = {_plain(key): (key, value) for key, value in tensors.items()}
    spare = {_plain(key) for key in allowed_left_over}
    missing = [own[name][0] for name in own if name not in given and not name.endswith(_COUNTER)]
    left_over = [
        given[name][0]
        for name in given
        if name not in own and name not in spare and not name.endswith(_COUNTER)
    ]
    wrong = [
        f"{key} is {tuple(given[name][1].shape)}, the model has {tuple(value.shape)}"
        for name, (key, value) in own.items()
        if name in given and given[name][1].shape != value.shape
    ]
    if missing or left_over or wrong:
        raise ValueError(
            f"weights {source} do not fit this model: "
            + "; ".join(
                f"{len(items)} {kind}: {', '.join(items)}"
                for kind, items in (
                    ("missing", missing),
                    ("left over", left_over),
                    ("of another shape", wrong),
                )
                if items
            )
            + ". Nothing was loaded. Take the recipe that these weights were trained with."
        )
    state = {key: given[name][1] for name, (key, _) in own.items() if name in given}
    model.load_state_dict({**model.state_dict(), **state})


def _plain(key: str) -> str:
    return key.replace(".", "_")
