"""Frozen dataclasses as JSON, and back with everything that is wrong said at once.

The types of the fields are the only schema. It knows nothing of recipes:
recipe.py hands it the types. Where a field may hold one of several dataclasses, each has a class
variable `task` of its own, which is written beside its fields and chooses when they are read;
without it the first one is meant.
"""

import difflib
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.errors import PipelineError

Kind: TypeAlias = Any
"""The type of a field, as get_type_hints returns it."""

Plain: TypeAlias = Any
"""What JSON can hold."""

_TAG = "task"

_BROKEN = object()
"""Stands for a value that could not be read; the problem is in the list by then."""


def to_plain(value: object) -> Plain:
    """Turn a dataclass into dicts, lists and scalars that JSON can hold.

    An int in a float field becomes a float, so that 1 and 1.0 are the same recipe.
    """
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        plain = {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
        tag = {_TAG: getattr(value, _TAG)} if hasattr(value, _TAG) else {}
        return tag | {name: _widen(item, hints[name]) for name, item in plain.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def leaves(plain: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts: {"optim": {"steps": 1}} gives {"optim.steps": 1}."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            flat |= leaves(value, prefix=f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def from_plain(kind: Kind, plain: Plain, *, problems: list[str]) -> object | None:
    """Build a dataclass from what JSON gave, or append to `problems` and return None.

    Args:
        kind: the dataclass to build.
        plain: dicts, lists and scalars, as `to_plain` makes them.
        problems: gets one sentence for each unknown, missing, wrongly typed or forbidden value.
    """
    value = _read(kind, plain, path="", problems=problems)
    return None if value is _BROKEN else value


def _widen(value: Plain, kind: Kind) -> Plain:
    if kind is float or (float in get_args(kind) and not isinstance(value, list)):
        return float(value) if type(value) is int else value
    if isinstance(value, list):
        return [_widen(item, get_args(kind)[0]) for item in value]
    return value


def _read(kind: Kind, plain: Plain, *, path: str, problems: list[str]) -> object:
    if isinstance(kind, TypeVar):
        kind = kind.__bound__
    if is_dataclass(kind):
        return _read_part(kind, plain, path=path, problems=problems)
    origin: Kind = get_origin(kind)
    if origin is tuple:
        return _read_tuple(kind, plain, path=path, problems=problems)
    if origin in {Union, types.UnionType}:
        if plain is None and types.NoneType in get_args(kind):
            return None
        kinds = [item for item in get_args(kind) if item is not types.NoneType]
        if is_dataclass(kinds[0]):
            return _read_tagged(kinds, plain, path=path, problems=problems)
        return _read(kinds[0], plain, path=path, problems=problems)
    return _read_scalar(kind, plain, path=path, problems=problems)


def _read_tagged(kinds: list[Kind], plain: Plain, *, path: str, problems: list[str]) -> object:
    by_tag = {getattr(kind, _TAG): kind for kind in kinds}
    first = next(iter(by_tag))
    tag = plain.get(_TAG, first) if isinstance(plain, dict) else first
    if not isinstance(tag, str) or tag not in by_tag:
        allowed = ", ".join(map(repr, by_tag))
        problems.append(f"{path}.{_TAG}: must be one of {allowed}, got {tag!r}")
        return _BROKEN
    if isinstance(plain, dict):
        plain = {name: value for name, value in plain.items() if name != _TAG}
    return _read_part(by_tag[tag], plain, path=path, problems=problems)


def _read_part(kind: Kind, plain: Plain, *, path: str, problems: list[str]) -> object:
    if not isinstance(plain, dict):
        problems.append(f"{path or 'recipe'}: needs an object with fields, got {plain!r}")
        return _BROKEN
    dot = f"{path}." if path else ""
    known = [f.name for f in fields(kind)]
    problems += [f"{dot}{name}: {_unknown(name, known)}" for name in plain if name not in known]
    hints = get_type_hints(kind)
    values = {}
    for f in fields(kind):
        if f.name in plain:
            values[f.name] = _read(
                hints[f.name], plain[f.name], path=dot + f.name, problems=problems
            )
        elif _is_required(f):
            problems.append(f"{dot}{f.name}: is missing")
            values[f.name] = _BROKEN
    if _BROKEN in values.values():
        return _BROKEN
    return _build(kind, values, path=path, problems=problems)


def _build(kind: Kind, values: dict[str, Any], *, path: str, problems: list[str]) -> object:
    try:
        return kind(**values)
    except (ValueError, PipelineError) as error:
        said = str(error).removeprefix(path.rpartition(".")[2] + ": ")
        problems.append(f"{path}: {said}" if path else said)
        return _BROKEN


def _read_tuple(kind: Kind, plain: Plain, *, path: str, problems: list[str]) -> object:
    inner = get_args(kind)
    if not isinstance(plain, list | tuple):
        problems.append(f"{path}: needs a list, got {plain!r}")
        return _BROKEN
    if inner[-1] is not Ellipsis and len(plain) != len(inner):
        problems.append(f"{path}: needs {len(inner)} values, got {len(plain)}")
        return _BROKEN
    items = [
        _read(inner[0], item, path=f"{path}[{position}]", problems=problems)
        for position, item in enumerate(plain)
    ]
    return _BROKEN if _BROKEN in items else tuple(items)


def _read_scalar(kind: Kind, plain: Plain, *, path: str, problems: list[str]) -> object:
    origin: Kind = get_origin(kind)
    if origin is Literal:
        if plain in get_args(kind):
            return plain
        choices = ", ".join(map(repr, get_args(kind)))
        problems.append(f"{path}: must be one of {choices}, got {plain!r}")
        return _BROKEN
    if kind is float and type(plain) in {int, float}:
        if math.isfinite(plain):
            return float(plain)
        problems.append(f"{path}: needs a finite number, got {plain!r}")
        return _BROKEN
    if type(plain) is kind:
        return plain
    problems.append(f"{path}: needs {_NAMES.get(kind, kind)}, got {plain!r}")
    return _BROKEN


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return "unknown field" + (f"; perhaps you meant {near[0]}" if near else "")


def _is_required(f: "Field[Any]") -> bool:
    return f.default is MISSING and f.default_factory is MISSING
