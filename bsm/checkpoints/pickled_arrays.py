"""Read a pickle of named numpy arrays, as detectron2's .pkl files are, and run nothing in it.

A pickle is a program: it names functions by module and calls them. Here the few names that arrays
are written with stand for inert classes of this file, which only note what they are given; every
other name is refused. Arrays are made of those notes afterwards, so not even numpy runs on what the
file says (numpy's own way to restore an array believes the sizes and flags it is told).
"""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class RefusedError(Exception):
    """A pickle asks for something that arrays do not need, or describes none."""


def read_pickled_arrays(path: str | Path) -> object:
    """Read plain containers, numbers and texts, in which every numpy array is a tensor.

    Raises:
        RefusedError: the file names anything but what numpy arrays are written with, or holds an
            array that is none.
        pickle.UnpicklingError: the file is no pickle. Broken ones raise other errors too.
    """
    with Path(path).open("rb") as file:
        # Files of Python 2, as the older ones of detectron2, hold bytes as text.
        return _to_tensors(_Unpickler(file, encoding="latin1").load())


class _Dtype:
    """Stands for numpy.dtype: "f4" and, from its state, the order of bytes."""

    def __init__(self, kind: object, *_: object) -> None:
        self.kind, self.byte_order = kind, "<"

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401  whatever the file says
        self.byte_order = state[1]


class _Array:
    """Stands for numpy.ndarray: its shape, dtype, order and bytes, as the file says them."""

    def __init__(self) -> None:
        self.notes: tuple[object, ...] = ()

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.notes = tuple(state)[-4:]  # before them may stand a version


def _reconstruct(*_: object) -> _Array:
    """Stands for what makes an empty array, whose state comes next."""
    return _Array()


def _scalar(dtype: object, data: object) -> _Array:
    """Stands for what makes a numpy number."""
    array = _Array()
    array.notes = ((), dtype, False, data)
    return array


def _from_buffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    """Stands for what makes an array of bytes, since protocol 5."""
    array = _Array()
    array.notes = (shape, dtype, order == "F", data)
    return array


def _latin1(text: str, _: object) -> bytes:
    """Stands for _codecs.encode, by which Python 3 writes bytes in protocol 2."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stands for bytes(), by which Python 3 writes no bytes at all in protocol 2."""
    return b""


_ADMITTED: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) not in _ADMITTED:
            raise RefusedError(f"it asks for {module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: object) -> object:
        raise RefusedError("it asks for objects outside the file, as torch.save's do")


def _to_tensors(value: object) -> object:
    match value:
        case dict():
            return {_to_tensors(key): _to_tensors(each) for key, each in value.items()}
        case list() | tuple():
            return [_to_tensors(each) for each in value]
        case _Array():
            return _to_tensor(value)
    return value


def _to_tensor(array: _Array) -> Tensor:
    match array.notes:
        case (tuple(shape), _Dtype(kind=str(kind)) as noted, is_fortran, data) if isinstance(
            data, bytes | bytearray | str
        ):
            dtype = None if noted.byte_order == ">" else _DTYPES.get(kind.lstrip("<|="))
        case _:
            raise RefusedError("it holds an array without shape, dtype or bytes of its own")
    content = data.encode("latin1") if isinstance(data, str) else data
    if dtype is None or not _is_size(shape, num_bytes=len(content), dtype=dtype):
        raise RefusedError(
            f"it holds an array of shape {shape}, dtype {noted.byte_order}{kind} and "
            f"{len(content)} bytes, which do not fit together or are no little-endian numbers"
        )
    if not content:
        return torch.zeros(shape, dtype=dtype)
    flat = torch.frombuffer(bytearray(content), dtype=dtype)
    if is_fortran:
        return flat.view(shape[::-1]).permute(*range(len(shape))[::-1]).contiguous()
    return flat.view(shape)


def _is_size(shape: tuple[object, ...], *, num_bytes: int, dtype: torch.dtype) -> bool:
    sides = [side for side in shape if type(side) is int and side >= 0]
    return len(sides) == len(shape) and math.prod(sides) * dtype.itemsize == num_bytes
