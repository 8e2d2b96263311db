"""Read a pickle of named numpy arrays, such as detectron2's .pkl files, without executing it.

A pickle is a program: it names functions by module and calls them. Here the few names that numpy
arrays need map to inert classes of this file, which only record their arguments; every other name
is rejected. The arrays are built from those records afterwards, so not even numpy runs on the
file's content (numpy's own unpickling trusts the sizes and flags in the file).

A pickle may also use an object many times, so that few bytes become many gigabytes. So sizes and
positions are checked before anything is read, and what is copied may not exceed the file.
"""

import math
import mmap
import pickle
import pickletools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}


class UnsupportedPickleError(Exception):
    """A pickle needs something that arrays do not, or describes an invalid array."""


def read_pickled_arrays(path: str | Path) -> object:
    """Read plain containers, numbers and strings, with every numpy array as a tensor.

    Raises:
        UnsupportedPickleError: the file names anything that numpy arrays do not need, or holds an
            invalid array.
        pickle.UnpicklingError: the file is not a pickle. Corrupt ones raise other errors too.
    """
    with Path(path).open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_program(content)
            budget = _Budget(len(content))
        # Files from Python 2, such as detectron2's older ones, hold bytes as text.
        loaded = _Unpickler(file, budget).load()
        budget = _Budget(budget.file_bytes)
        return _to_tensors(loaded, budget, {})


def _check_program(content: mmap.mmap) -> None:
    """Refuse positions beyond the file: Python's unpickler makes room for what they announce.

    pickletools does the same for the sizes of texts and bytes, with a ValueError.
    """
    for opcode, argument, _ in pickletools.genops(content):  # type: ignore[arg-type]
        is_position = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_position and (argument or 0) > len(content):
            raise UnsupportedPickleError(f"it stores an object at position {argument}")


class _Budget:
    """Bytes that may still be copied; those of an honest file are all in the file, once."""

    def __init__(self, file_bytes: int) -> None:
        self.file_bytes = self._left = file_bytes

    def spend(self, count: int) -> None:
        """Count bytes, or entries of at least one byte, that are copied."""
        self._left -= count
        if self._left < 0:
            raise UnsupportedPickleError(
                f"it repeats its content, to more than the {self.file_bytes} bytes of the file"
            )


class _Dtype:
    """A replacement of numpy.dtype: "f4" and, from its state, the byte order."""

    def __init__(self, kind: object, *_: object) -> None:
        self.kind, self.byte_order = kind, "<"

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401  any content of the file
        self.byte_order = state[1]


class _Array:
    """A replacement of numpy.ndarray: its shape, dtype, order and bytes, as in the file."""

    def __init__(self) -> None:
        self.fields: tuple[object, ...] = ()

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.fields = tuple(state)[-4:]  # a version may precede them


def _make_array(*_: object) -> _Array:
    """Replace numpy's _reconstruct(), which makes an empty array before its state is set."""
    return _Array()


def _make_scalar(dtype: object, data: object) -> _Array:
    """Replace numpy's scalar(), which restores a number."""
    array = _Array()
    array.fields = ((), dtype, False, data)
    return array


def _make_from_buffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    """Replace numpy's _frombuffer(), which restores an array since protocol 5."""
    array = _Array()
    array.fields = (shape, dtype, order == "F", data)
    return array


def _make_empty_bytes() -> bytes:
    """Replace bytes(), with which Python 3 writes empty bytes in protocol 2."""
    return b""


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("__builtin__", "bytes"): _make_empty_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _make_array
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _make_scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _make_from_buffer


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, budget: _Budget) -> None:
        super().__init__(file, encoding="latin1")
        self._budget = budget
        self._allowed: dict[tuple[str, str], Callable[..., object]] = {
            **_ALLOWED,
            ("collections", "OrderedDict"): self._make_dict,
            ("_codecs", "encode"): self._encode_latin1,
        }

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) not in self._allowed:
            raise UnsupportedPickleError(f"it asks for {module}.{name}")
        return self._allowed[module, name]

    def _make_dict(self, items: Sequence[Any] = ()) -> dict[Any, Any]:
        self._budget.spend(len(items))
        return dict(items)

    def _encode_latin1(self, text: str, _: object) -> bytes:
        """Replace _codecs.encode(), with which Python 3 writes bytes in protocol 2."""
        self._budget.spend(len(text))
        return text.encode("latin1")

    def persistent_load(self, pid: object) -> object:
        raise UnsupportedPickleError(
            "it asks for objects outside the file, as files of torch.save do"
        )


def _to_tensors(value: object, budget: _Budget, seen: dict[int, object]) -> object:
    """Convert containers and their arrays.

    Args:
        value: what was unpickled.
        budget: of the tensors.
        seen: what was converted, by id; an object that is used twice is converted once.
    """
    if not isinstance(value, dict | list | tuple | _Array):
        return value
    if id(value) not in seen:
        seen[id(value)] = _convert(value, budget, seen)
    return seen[id(value)]


def _convert(value: object, budget: _Budget, seen: dict[int, object]) -> object:
    match value:
        case dict():
            return {
                _to_tensors(key, budget, seen): _to_tensors(item, budget, seen)
                for key, item in value.items()
            }
        case list() | tuple():
            return [_to_tensors(item, budget, seen) for item in value]
        case _Array():
            return _to_tensor(value, budget)
    return value


def _to_tensor(array: _Array, budget: _Budget) -> Tensor:
    match array.fields:
        case (tuple(shape), _Dtype(kind=str(kind)) as saved, is_fortran, data) if isinstance(
            data, bytes | bytearray | str
        ):
            dtype = None if saved.byte_order == ">" else _DTYPES.get(kind.lstrip("<|="))
        case _:
            raise UnsupportedPickleError("it holds an array without a shape, dtype or bytes")
    budget.spend(len(data))
    content = data.encode("latin1") if isinstance(data, str) else data
    if dtype is None or not _matches_size(shape, num_bytes=len(content), dtype=dtype):
        raise UnsupportedPickleError(
            f"it holds an array of shape {shape}, dtype {saved.byte_order}{kind} and "
            f"{len(content)} bytes, which do not match or are not little-endian numbers"
        )
    if not content:
        return torch.zeros(shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(content), dtype=dtype)
    if is_fortran:
        return flat.view(shape[::-1]).permute(*range(len(shape))[::-1]).contiguous()
    return flat.view(shape)


def _matches_size(shape: tuple[object, ...], *, num_bytes: int, dtype: torch.dtype) -> bool:
    sides = [side for side in shape if type(side) is int and side >= 0]
    return len(sides) == len(shape) and math.prod(sides) * dtype.itemsize == num_bytes
