"""Check configs: ranges at the fields, rules across fields, every violation in one error."""

import math
import types
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import BaseMetadata, Ge, Gt, Interval, MinLen, MultipleOf


class Odd(BaseMetadata):
    """Constraint: an odd number."""


PositiveInt: TypeAlias = Annotated[int, Ge(1)]
NonNegativeInt: TypeAlias = Annotated[int, Ge(0)]
PositiveFloat: TypeAlias = Annotated[float, Gt(0)]
NonNegativeFloat: TypeAlias = Annotated[float, Ge(0)]
Fraction: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
PositiveFraction: TypeAlias = Annotated[float, Interval(gt=0, le=1)]
KernelSize: TypeAlias = Annotated[int, Ge(3), Odd()]

_suspended: ContextVar[bool] = ContextVar("_suspended", default=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Base of all configs: a config checks itself when it is created."""

    error_type: ClassVar[type[Exception]] = ValueError
    """The exception that lists the violations."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Yield a field and a sentence for each violated rule that no annotation expresses.

        Fields have the right types here, but may be out of range.
        """
        yield from ()

    def __post_init__(self) -> None:
        if not _suspended.get() and (problems := violations(self)):
            raise self.error_type("; ".join(problems))


@contextmanager
def suspend_checks() -> Iterator[None]:
    """Let parsers build invalid configs, so that `violations` can report everything at once."""
    token = _suspended.set(True)
    try:
        yield
    finally:
        _suspended.reset(token)


def violations(config: Config, path: str = "", *, skip: Collection[str] = ()) -> list[str]:
    """List the violated constraints and rules of a config and of all configs in it.

    Args:
        config: the root of the tree.
        path: prefix of the field names in the sentences.
        skip: paths of fields whose values were not usable and are defaults now. Rules across
            fields are left out for every config that contains one.
    """
    prefix = f"{path}." if path else ""
    hints = get_type_hints(type(config), include_extras=True)
    problems = [
        problem
        for field in fields(config)
        for problem in _check(
            getattr(config, field.name), hints[field.name], prefix + field.name, skip
        )
    ]
    if not any(name.startswith(prefix) for name in skip):
        problems += [f"{prefix}{name}: {text}" for name, text in config.find_problems()]
    return problems


def _check(value: Any, hint: Any, path: str, skip: Collection[str]) -> Iterator[str]:  # noqa: ANN401
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(value, Config):
        yield from violations(value, path, skip=skip)
    elif origin in {Union, types.UnionType}:
        if value is not None:
            yield from _check(value, _choose_member(value, args), path, skip)
    elif origin is Annotated:
        broken = [text for rule in args[1:] if (text := _broken(rule, value))]
        yield from list(_check(value, args[0], path, skip)) or [
            f"{path}: {text}, got {value!r}" for text in broken
        ]
    else:
        if text := _mismatch(value, origin, args):
            yield f"{path}: {text}"
        for index, item in enumerate(value if origin is tuple else ()):
            yield from _check(item, args[0], f"{path}[{index}]", skip)


def _choose_member(value: Any, members: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """Return the member of a union that a value is meant for: a number, or one of some words."""
    words = [each for each in members if get_origin(each) is Literal]
    return words[0] if words and isinstance(value, str) else members[0]


def _mismatch(value: Any, origin: Any, args: tuple[Any, ...]) -> str:  # noqa: ANN401
    """Return what makes a value no member of its type, or an empty string."""
    if origin is Literal and value not in args:
        return f"must be one of {', '.join(map(repr, args))}, got {value!r}"
    if origin is tuple and args[-1] is not Ellipsis and len(value) != len(args):
        return f"needs {len(args)} values, got {len(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"needs a finite number, got {value}"
    return ""


def _broken(rule: BaseMetadata, value: Any) -> str:  # noqa: ANN401
    """Return the sentence of a violated constraint, or an empty string."""
    match rule:
        case Ge(ge=low):
            holds, text = value >= low, f"must be at least {low}"
        case Gt(gt=low):
            holds, text = value > low, f"must be above {low}"
        case Interval():
            holds, text = _within(rule, value)
        case MultipleOf(multiple_of=factor):
            holds, text = value % factor == 0, f"must be a multiple of {factor}"
        case MinLen(min_length=1):
            holds, text = len(value) > 0, "must not be empty"
        case Odd():
            holds, text = value % 2 == 1, "must be odd"
        case _:
            raise TypeError(f"no check for {rule}")
    return "" if holds else text


def _within(interval: Interval, value: Any) -> tuple[bool, str]:  # noqa: ANN401
    left, low = ("(", interval.gt) if interval.ge is None else ("[", interval.ge)
    right, high = (")", interval.lt) if interval.le is None else ("]", interval.le)
    holds = low <= value <= high and (left, low) != ("(", value) and (right, high) != (")", value)
    return holds, f"must be in {left}{low}, {high}{right}"
