"""Read and write weight files strictly: execute nothing, skip nothing silently."""

import hashlib
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bsm.checkpoints.foreign_files import describe_foreign_file
from bsm.checkpoints.pickled_arrays import UnsupportedPickleError, read_pickled_arrays

_COUNTER = "num_batches_tracked"
"""Batch norm's step count; it is not a weight, and frozen norms do not have it."""
_WRAPPERS = ("state_dict", "model", "blobs")
"""Keys under which training codes save the tensors beside other content."""
_MAX_NAMES = 5
_CONVERT = (
    "If you trust the file, load it with the code that wrote it and save it again: "
    "safetensors.torch.save_file({name: tensor, ...}, 'weights.safetensors')"
)
_DIGEST = "tensors_sha256"
"""Key of the tensors' SHA-256 in the metadata of a safetensors file."""


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the state of a model as safetensors, with a SHA-256 that `read_weights` checks."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, path, metadata={_DIGEST: _hash_tensors(tensors)})


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a model from a file with the model's own names.

    Raises:
        ValueError: the file cannot be read, or its keys or shapes differ from the model's; every
            difference is listed.
    """
    copy_state(model, read_weights(path), source=str(path))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a file of named tensors without executing anything in it.

    It may be a .safetensors file, a file of torch.save, or a .pkl of numpy arrays as in detectron2.
    Wrappers around the tensors ("model", "state_dict", "module.") are removed.

    Raises:
        ValueError: the file does not exist, or holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(
            f"weights {str(path)!r}: no such file. Give a .safetensors, .pth or .pkl file, or "
            "leave it empty to start at random."
        )
    with file.open("rb") as stream:
        start = stream.read(128)
    if foreign := describe_foreign_file(start):
        raise ValueError(f"weights {file}: not a plain file of tensors: {foreign}.")
    try:
        if file.suffix == ".safetensors":
            return _read_safetensors(file)
        if file.suffix == ".pkl" and not zipfile.is_zipfile(file):
            content = read_pickled_arrays(file)
        else:
            content = _load_torch_file(file)
    except (_DamagedFileError, _UnfitFileError):
        raise
    except UnsupportedPickleError as error:
        raise ValueError(
            f"weights {file}: {error}. In a .pkl, only plain containers of numpy arrays are read, "
            f"and nothing in it is executed. {_CONVERT}"
        ) from error
    except Exception as error:  # other content makes a reader raise anything
        raise ValueError(
            f"weights {file}: not a plain file of tensors: {_explain(error, file, start=start)}. "
            "Only .safetensors, a state_dict of torch.save and a .pkl of numpy arrays are read; "
            f"nothing in a file is executed. {_CONVERT}"
        ) from error
    return _unwrap(content, file)


def _load_torch_file(file: Path) -> object:
    if zipfile.is_zipfile(file):
        _check_members(file)
    with warnings.catch_warnings():
        # For files of old versions, torch asks to report its own limits to its developers.
        warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_members(file: Path) -> None:
    """Refuse a zip that unpacks to more than its size; torch.save does not compress."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(each.file_size for each in archive.infolist())
    if unpacked > file.stat().st_size:
        raise _UnfitFileError(
            f"weights {file}: its content would unpack to {unpacked} bytes, more than the file "
            f"has ({file.stat().st_size}); torch.save does not compress. {_CONVERT}"
        )


class _UnfitFileError(ValueError):
    """A file whose content cannot be that of torch.save."""


class _DamagedFileError(ValueError):
    """A file whose tensors are not those that were written."""


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    tensors = load_file(file)
    with safe_open(file, framework="pt") as header:
        expected = (header.metadata() or {}).get(_DIGEST)
    if expected and (digest := _hash_tensors(tensors)) != expected:
        raise _DamagedFileError(
            f"weights {file}: the tensors were changed after the file was written (SHA-256 "
            f"{digest}, written {expected}). Take another copy of the file."
        )
    return tensors


def _hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _explain(error: Exception, file: Path, *, start: bytes) -> str:
    """Say in our own words why a file is not read: torch advises to switch its safety off."""
    if isinstance(error, SafetensorError):
        return str(error)
    if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it asks for {asked[1]}"
    if start.startswith(b"PK"):
        return "it is a zip that torch.save did not write, or that is cut off or damaged"
    if start.startswith(b"\x80"):
        return "it is a Python pickle with other content"
    return f"it starts with {start[:16]!r}"


def _unwrap(content: object, file: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ValueError(
            f"weights {file}: does not map names to tensors. Save model.state_dict(), or use "
            ".safetensors."
        )
    tensors = cast(Mapping[str, Tensor], content)
    odd = [key for key, value in tensors.items() if not _is_plain(value, file)]
    if odd:
        raise ValueError(
            f"weights {file}: {len(odd)} of {len(tensors)} tensors "
            "are sparse, quantized, without values, or claim more values than the file holds: "
            f"{', '.join(odd[:_MAX_NAMES])}. Save dense tensors: "
            "{name: value.cpu().to_dense().contiguous(), ...}"
        )
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _is_plain(value: Tensor, file: Path) -> bool:
    """Tell whether a tensor has all of its values in memory, each as a number."""
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        return False
    stored = max(value.untyped_storage().nbytes(), file.stat().st_size)
    return value.numel() * value.element_size() <= stored


def copy_state(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    allowed_extra_keys: Collection[str] = (),
    unexpected_keys: Collection[str] = (),
    leave_out: Collection[str] = (),
    advise: Callable[[Sequence[str]], str] = lambda _: "",
) -> None:
    """Copy named tensors into a model, all of them or none.

    Names may differ in "." and "_": timm flattens "stages.0" when it cuts features from a model.

    Args:
        model: to fill.
        tensors: by name.
        source: names the tensors in errors.
        allowed_extra_keys: names that the tensors may have and the model not.
        unexpected_keys: names in the source without a counterpart in the model.
        leave_out: names of modules or tensors to leave unchanged in the model or unused in the
            source.
        advise: writes the end of the error, given the parts that do not fit.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape, or neither side has a part
            to leave out; every case is listed.
    """
    state = model.state_dict()
    everything = (*state, *tensors, *unexpected_keys)
    _check_parts(leave_out, everything, source=source)
    own = {flatten_name(key): key for key in state if not _is_in(key, leave_out)}
    given = {flatten_name(key): key for key in tensors if not _is_in(key, leave_out)}
    allowed = {flatten_name(key) for key in allowed_extra_keys}
    missing = [key for name, key in own.items() if name not in given]
    unexpected = [key for name, key in given.items() if name not in own and name not in allowed]
    unexpected += [name for name in unexpected_keys if not _is_in(name, leave_out)]
    wrong = {
        key: f"{key} is {tuple(tensors[given[name]].shape)}, "
        f"the model has {tuple(state[key].shape)}"
        for name, key in own.items()
        if name in given and tensors[given[name]].shape != state[key].shape
    }
    kinds = {
        "missing": [key for key in missing if not key.endswith(_COUNTER)],
        "unexpected": [key for key in unexpected if not key.endswith(_COUNTER)],
        "of another shape": list(wrong),
    }
    if any(kinds.values()):
        parts = _find_parts([key for keys in kinds.values() for key in keys], everything)
        raise ValueError(
            f"weights {source} do not fit this model: "
            + "; ".join(
                f"{len(keys)} {kind}: {', '.join(wrong.get(key, key) for key in keys)}"
                for kind, keys in kinds.items()
                if keys
            )
            + ". Nothing was loaded. Use the recipe that these weights were trained with"
            + advise(parts)
            + "."
        )
    filled = {key: tensors[given[name]] for name, key in own.items() if name in given}
    _check_finite(filled, source=source)
    model.load_state_dict({**state, **filled})


def _check_finite(tensors: Mapping[str, Tensor], *, source: str) -> None:
    broken = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        more = f" and {len(broken) - _MAX_NAMES} more" if len(broken) > _MAX_NAMES else ""
        raise ValueError(
            f"weights {source}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity: "
            f"{', '.join(broken[:_MAX_NAMES])}{more}. Nothing was loaded. Their training diverged "
            "or the file is damaged: take an earlier checkpoint or other weights."
        )


def _check_parts(leave_out: Collection[str], names: Collection[str], *, source: str) -> None:
    unknown = [part for part in leave_out if not any(_is_in(name, [part]) for name in names)]
    if unknown:
        tops = sorted({name.partition(".")[0] for name in names})
        raise ValueError(
            f"weights_leave_out: {', '.join(unknown)}: neither the model nor {source} has such a "
            "part. Use the model's module names, such as box_head.scores; they start with "
            f"{', '.join(tops)}."
        )


def _is_in(name: str, parts: Collection[str]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


def _find_parts(names: Iterable[str], everything: Collection[str]) -> list[str]:
    """Find the fewest modules that hold all of the names and none of the others."""
    bad = set(names)
    parts = []
    for name in sorted(bad):
        part = name
        while "." in part:
            parent = part.rpartition(".")[0]
            if any(_is_in(other, [parent]) and other not in bad for other in everything):
                break
            part = parent
        if part not in parts:
            parts.append(part)
    return parts


def flatten_name(key: str) -> str:
    """Make a timm model's name equal to the same name in the backbone that timm cuts from it."""
    return key.replace(".", "_")
