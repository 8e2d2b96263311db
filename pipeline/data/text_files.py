"""Decode text and JSON files, also those that Windows' programs write.

One rule for both: a byte-order mark names the encoding and is no part of the text; without one the
text is UTF-8, or the UTF-16 or UTF-32 that its zero bytes show, as in JSON.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bsm.checkpoints.foreign_files import describe_foreign_file


def decode_text(data: bytes) -> str:
    """Decode a text file.

    Raises:
        UnicodeDecodeError: it has another encoding.
    """
    return data.decode(json.detect_encoding(data))


Kind = TypeVar("Kind")

_MAX_ERRORS = 3

_SPARE_CALLS = 500
"""Of Python's 1000 nested calls, those that are left to code that walks through a JSON."""


def parse_json(data: bytes | str, *, parse: Callable[[Any], object] = json.loads) -> object:
    """Parse a JSON file.

    Args:
        data: of the file.
        parse: parses it, as json.loads does.

    Raises:
        ValueError: it is not JSON, for instance because it was truncated, or is nested so deeply
            that it could not be copied, shown or written.
    """
    try:
        return _parse_below(data, _SPARE_CALLS, parse)
    except RecursionError as error:
        raise ValueError("its lists are nested too deeply") from error
    except ValueError:
        if isinstance(data, bytes) and (foreign := describe_foreign_file(data[:128])):
            raise ValueError(foreign) from None
        raise


def _parse_below(data: bytes | str, calls: int, parse: Callable[[Any], object]) -> object:
    """Parse a JSON that many calls deeper than the caller."""
    return _parse_below(data, calls - 1, parse) if calls else parse(data)


def to_typed(kind: type[Kind], plain: object) -> Kind:
    """Make a dataclass, or a container of some, from parsed JSON, and check every type.

    Raises:
        ValueError: a field is missing, unknown or of another type; the first few are named.
    """
    try:
        # In strict mode only JSON's lists become tuples, Python's do not.
        typed: Kind = _adapter(kind).validate_json(  # type: ignore[arg-type]
            json.dumps(plain), strict=True, extra="forbid"
        )
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        shown = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in errors]
        more = f" and {len(shown) - _MAX_ERRORS} more" if len(shown) > _MAX_ERRORS else ""
        raise ValueError("; ".join(shown[:_MAX_ERRORS]) + more) from error
    return typed


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401
    return TypeAdapter(kind)
