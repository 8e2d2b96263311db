"""Configs as JSON, and back with every problem in one list.

pydantic checks types and keys; bsm/configs/rules.py checks ranges, choices and rules across fields,
as it does for the command line and for Python.
"""

import difflib
import functools
import itertools
import json
import operator
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeAlias, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter
from pydantic_core import ErrorDetails, SchemaValidator, ValidationError

from bsm.configs.rules import Config, suspend_checks, violations

Kind = TypeVar("Kind", bound=Config)

Plain: TypeAlias = Any
"""Dicts, lists and scalars, as JSON holds them."""

_TAG = "task"
"""Class variable of a model config, written beside its fields."""

_UNKNOWN = "unexpected_keyword_argument"
"""pydantic's error type for an unknown field."""

_MAX_LEVELS = 32

_INT64 = range(-(2**63), 2**63)

_SURROGATE = re.compile("[\ud800-\udfff]")

_NEEDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "number_or_word": "a whole number, or the word that the field takes",
    "dataclass_type": "an object with fields",
}
"""What a field needs, by pydantic's error type."""


def to_plain(value: object) -> Plain:
    """Turn a config into dicts, lists and scalars.

    An int in a float field becomes a float, so that 1 and 1.0 are the same recipe.
    """
    if not isinstance(value, Config):
        return [to_plain(item) for item in value] if isinstance(value, tuple) else value
    hints = get_type_hints(type(value))
    tag = {_TAG: getattr(value, _TAG)} if hasattr(value, _TAG) else {}
    return tag | {
        f.name: _widen(to_plain(getattr(value, f.name)), hints[f.name]) for f in fields(value)
    }


def leaves(plain: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts: {"optim": {"steps": 1}} gives {"optim.steps": 1}."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            flat |= leaves(value, prefix=f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def find_unusable(plain: Mapping[str, Any]) -> list[str]:
    """List the values that JSON may hold and no config: too deep, too large, or not text.

    They are looked for first and without recursion, as nothing else could copy or show them.
    """
    problems: list[str] = []
    parts: list[tuple[str, Any]] = [("", plain)]
    for _ in range(_MAX_LEVELS):
        inside: list[tuple[str, Any]] = []
        for path, part in parts:
            items = part.items() if isinstance(part, dict) else enumerate(part)
            for key, value in items:
                where = f"{path}.{key}".removeprefix(".")
                if isinstance(value, dict | list):
                    inside.append((where, value))
                elif isinstance(value, int) and value not in _INT64:
                    problems.append(f"{where:.60}: does not fit into 64 bits")
                if any(_SURROGATE.search(each) for each in (key, value) if isinstance(each, str)):
                    problems.append(f"{where!r:.60}: is not valid Unicode")
        parts = inside
    if parts:
        problems.append(f"{parts[0][0]:.60}: is nested more than {_MAX_LEVELS} levels deep")
    return problems


def from_plain(kind: type[Kind], plain: dict[str, Any]) -> tuple[Kind, list[str]]:
    """Build a config from plain values.

    Returns:
        The config, and a sentence for each unknown, missing, mistyped or forbidden value. Where
        there are any, the config has defaults in their place and must not be used.
    """
    with suspend_checks():
        try:
            config, errors = _build(kind, plain), []
        except ValidationError as error:
            errors = error.errors(include_url=False)
            config = _build(kind, _repair(plain, errors))
    problems = [f"{_path(error['loc'])}: {_describe(error, config)}" for error in errors]
    mistyped = [_path(error["loc"]) for error in errors if error["type"] != _UNKNOWN]
    return config, problems + violations(config, skip=mistyped)


def _widen(value: Plain, hint: Any) -> Plain:  # noqa: ANN401
    if isinstance(value, list):
        return [_widen(item, get_args(hint)[0]) for item in value]
    is_float = hint is float or float in get_args(hint)
    return float(value) if is_float and type(value) is int else value


def _build(kind: type[Kind], plain: Plain) -> Kind:
    # In strict mode only JSON's lists become tuples, Python's do not.
    validator: SchemaValidator = _validator(kind)  # type: ignore[arg-type]
    config: Kind = validator.validate_json(json.dumps(plain), strict=True, extra="forbid")
    return config


@functools.cache
def _validator(kind: Any) -> SchemaValidator:  # noqa: ANN401
    return SchemaValidator(_only_types(TypeAdapter(kind).core_schema))


def _only_types(schema: Any) -> Any:  # noqa: ANN401
    """Drop constraints from a pydantic schema; `violations` checks them, with its own words."""
    if isinstance(schema, list):
        return [_only_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "literal":
        return {"type": "any"}
    if schema.get("type") == "union":
        return _only_types_of_union(schema)
    if schema.get("type") == "tuple":
        items = [_only_types(schema["items_schema"][0])]
        return {"type": "tuple", "items_schema": items, "variadic_item_index": 0}
    constraints = {"gt", "ge", "lt", "le", "multiple_of", "min_length"}
    return {key: _only_types(item) for key, item in schema.items() if key not in constraints}


def _only_types_of_union(schema: Any) -> Any:  # noqa: ANN401
    """Let a number or a text pass; one error says what it needs, not one for each member."""
    choices = [
        {"type": "str"} if choice.get("type") == "literal" else _only_types(choice)
        for choice in schema["choices"]
    ]
    error = {"custom_error_type": "number_or_word", "custom_error_message": "number or word"}
    return {"type": "union", "choices": choices, **error}


def _repair(plain: Plain, errors: list[ErrorDetails]) -> Plain:
    """Replace wrong values by defaults, so that the rest can be checked too."""
    repaired = json.loads(json.dumps(plain))
    for error in errors:
        *parents, name = itertools.takewhile(lambda key: isinstance(key, str), error["loc"])
        part = functools.reduce(operator.getitem, parents, repaired)
        part.pop(name, None)
        if error["type"] in ("missing", "string_type") and error["loc"][-1] == name:
            part[name] = ""  # fields without a default are texts
    return repaired


def _path(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc)[1:]


def _describe(error: ErrorDetails, config: Config) -> str:
    """Write one of pydantic's errors as our sentence."""
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == _UNKNOWN:
        *parents, name = map(str, error["loc"])
        part: Any = functools.reduce(getattr, parents, config)
        known = [f.name for f in fields(part)]
        near = difflib.get_close_matches(name, known, n=1)
        return "unknown field" + (f"; perhaps you meant {near[0]}" if near else "")
    return f"needs {_NEEDS[error['type']]}, got {error['input']!r:.60}"
