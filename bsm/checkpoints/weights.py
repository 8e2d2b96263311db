"""Weights in and out of files, strictly: nothing is executed, nothing is skipped in silence."""

import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bsm.checkpoints.pickled_arrays import RefusedError, read_pickled_arrays

_COUNTER = "num_batches_tracked"
"""Batch norm counts its steps under this name; the count is no weight, and frozen norms have
none."""
_WRAPPERS = ("state_dict", "model", "blobs")
"""What training codes call the tensors beside which they keep other things."""


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the state of a model as safetensors."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, path)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a model from a file that holds its own names.

    Raises:
        ValueError: the file cannot be read, or its keys or shapes are not those of the model; every
            difference is listed.
    """
    copy_state(model, read_weights(path), source=str(path))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a file of named tensors without executing anything in it.

    It may be .safetensors, what torch.save wrote, or a .pkl of numpy arrays as detectron2 has them.
    Wrappers that training codes put around the tensors ("model", "state_dict", "module.") are taken
    off.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"weights {str(path)!r}: no such file. Give a .safetensors, .pth or .pkl file, or "
            "leave it empty for a random start."
        )
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if file.suffix == ".pkl" and not zipfile.is_zipfile(file):
            content = read_pickled_arrays(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except RefusedError as error:
        raise ValueError(
            f"weights {file}: {error}. Of a .pkl only plain containers of numpy arrays are read, "
            "and nothing in it is executed. Where you trust its origin, load it there and write it "
            "again: safetensors.torch.save_file({name: tensor, ...}, 'weights.safetensors')"
        ) from error
    except Exception as error:  # bytes that are no weights make a reader raise anything
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"weights {file}: not a plain file of tensors ({first_line}). Only .safetensors, what "
            "torch.save writes of a state_dict, and .pkl of numpy arrays are read; nothing in a "
            "file is executed."
        ) from error
    return _named_tensors(content, file)


def _named_tensors(content: object, file: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
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
    strangers: Collection[str] = (),
    leave_out: Collection[str] = (),
    advise: Callable[[Sequence[str]], str] = lambda _: "",
) -> None:
    """Copy named tensors into a model, all of them or none.

    Names may differ in "." and "_": timm flattens "stages.0" when it cuts features from a model.

    Args:
        model: What is filled.
        tensors: Names and values.
        source: Names the tensors in errors.
        allowed_left_over: Names that the tensors may have and the model not.
        strangers: Names in the source that have no name in the model; also left over.
        leave_out: Parts of the model that stay as they are, and parts of the source that are not
            used: names of modules or tensors.
        advise: Gives the end of the error, from the parts that would have to be left out.

    Raises:
        ValueError: anything is missing, left over or of another shape, or a part to leave out is in
            neither; every case is listed.
    """
    state = model.state_dict()
    everything = (*state, *tensors, *strangers)
    _check_parts(leave_out, everything, source=source)
    own = {plain_name(key): key for key in state if not _in(key, leave_out)}
    given = {plain_name(key): key for key in tensors if not _in(key, leave_out)}
    spare = {plain_name(key) for key in allowed_left_over}
    missing = [key for name, key in own.items() if name not in given]
    left_over = [key for name, key in given.items() if name not in own and name not in spare]
    left_over += [name for name in strangers if not _in(name, leave_out)]
    wrong = {
        key: f"{key} is {tuple(tensors[given[name]].shape)}, "
        f"the model has {tuple(state[key].shape)}"
        for name, key in own.items()
        if name in given and tensors[given[name]].shape != state[key].shape
    }
    kinds = {
        "missing": [key for key in missing if not key.endswith(_COUNTER)],
        "left over": [key for key in left_over if not key.endswith(_COUNTER)],
        "of another shape": list(wrong),
    }
    if any(kinds.values()):
        parts = _parts_of([key for keys in kinds.values() for key in keys], everything)
        raise ValueError(
            f"weights {source} do not fit this model: "
            + "; ".join(
                f"{len(keys)} {kind}: {', '.join(wrong.get(key, key) for key in keys)}"
                for kind, keys in kinds.items()
                if keys
            )
            + ". Nothing was loaded. Take the recipe that these weights were trained with"
            + advise(parts)
            + "."
        )
    filled = {key: tensors[given[name]] for name, key in own.items() if name in given}
    model.load_state_dict({**state, **filled})


def _check_parts(leave_out: Collection[str], names: Collection[str], *, source: str) -> None:
    unknown = [part for part in leave_out if not any(_in(name, [part]) for name in names)]
    if unknown:
        tops = sorted({name.partition(".")[0] for name in names})
        raise ValueError(
            f"weights_leave_out: {', '.join(unknown)}: neither the model nor {source} has such a "
            "part. Name modules as the model does, as box_head.scores; they begin with "
            f"{', '.join(tops)}."
        )


def _in(name: str, parts: Collection[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def _parts_of(names: Iterable[str], everything: Collection[str]) -> list[str]:
    """The fewest modules that hold all of the names and none of the others."""
    bad = set(names)
    parts = []
    for name in sorted(bad):
        part = name
        while "." in part:
            parent = part.rpartition(".")[0]
            if any(_in(each, [parent]) and each not in bad for each in everything):
                break
            part = parent
        if part not in parts:
            parts.append(part)
    return parts


def plain_name(key: str) -> str:
    """A name as it is the same in a timm model and in the trunk that timm cuts from it."""
    return key.replace(".", "_")
