"""Read a JSON file whose longest list would not fit in memory as Python objects.

An annotation with a polygon of 24 corners takes 0.5 KB as text and six times that as a list of
numbers. So the list stays text, and an entry is parsed each time that it is read.
"""

import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, overload

from pipeline.data.text_files import parse_json

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


class RepeatedKeyError(ValueError):
    """A key is there twice, of which json.loads would drop the first without a word."""


class TextEntries(Sequence[object]):
    """Entries of a list in a JSON text, parsed when they are read.

    Args:
        text: of the file.
        starts: position of each entry.
        defaults: keys that an entry which is an object gets if it lacks them.
    """

    def __init__(self, text: str, starts: "array[int]", defaults: Mapping[str, Any]) -> None:
        self._text, self._starts, self._defaults = text, starts, defaults

    @overload
    def __getitem__(self, index: int) -> object: ...
    @overload
    def __getitem__(self, index: slice) -> "TextEntries": ...
    def __getitem__(self, index: int | slice) -> object:
        """Parse an entry, or choose some without parsing them."""
        if isinstance(index, slice):
            return TextEntries(self._text, self._starts[index], self._defaults)
        entry, _ = _DECODER.raw_decode(self._text, self._starts[index])
        if isinstance(entry, dict):
            for key, value in self._defaults.items():
                entry.setdefault(key, value)
        return entry

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._starts)


class ChosenEntries(Sequence[object]):
    """Some entries of a list, in an order of their own.

    Args:
        entries: the list.
        indices: of the chosen ones.
    """

    def __init__(self, entries: Sequence[object], indices: Iterable[int]) -> None:
        self._entries, self._indices = entries, array("q", indices)

    @overload
    def __getitem__(self, index: int) -> object: ...
    @overload
    def __getitem__(self, index: slice) -> "ChosenEntries": ...
    def __getitem__(self, index: int | slice) -> object:
        """Return an entry, or choose some of them."""
        if isinstance(index, slice):
            return ChosenEntries(self._entries, self._indices[index])
        return self._entries[self._indices[index]]

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._indices)


def parse_unique(
    data: bytes, *, entries: str = "", defaults: Mapping[str, Any] = MappingProxyType({})
) -> object:
    """Parse a JSON file; if it is an object, none of its keys may be there twice.

    Args:
        data: of the file.
        entries: the key of a list that becomes TextEntries; "" for none.
        defaults: of these entries.

    Raises:
        RepeatedKeyError: the object has a key twice.
        ValueError: as parse_json.
    """
    return parse_json(data, parse=partial(_parse, entries=entries, defaults=defaults))


def advise(error: ValueError) -> str:
    """Say what helps against an error of parse_unique; "" if its reason says it."""
    if isinstance(error, UnicodeDecodeError):
        return "; save it as UTF-8"
    if not isinstance(error, json.JSONDecodeError):
        return ""
    # The position of a string without an end is where it begins.
    is_cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")
    return "; it is truncated: copy it again" if is_cut else "; correct it there, or write it again"


def _parse(data: bytes, *, entries: str, defaults: Mapping[str, Any]) -> object:
    text = data.decode(json.detect_encoding(data), "surrogatepass")
    try:
        return _parse_object(text, entries, defaults)
    except RepeatedKeyError:
        raise
    except ValueError:
        # What is no object, and the error of what is no JSON.
        return json.loads(text)


def _parse_object(text: str, entries: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Parse an object; anything else is a ValueError."""
    top: dict[str, Any] = {}
    at, is_open = _enter(text, _skip(text, 0), "{}")
    while is_open:
        name, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if not isinstance(name, str) or text[at : at + 1] != ":":
            raise ValueError("a key and a colon must be here")
        if name in top:
            raise RepeatedKeyError(f"it has the key {name!r} twice; join both into one")
        at = _skip(text, at + 1)
        if name == entries and entries and text[at : at + 1] == "[":
            starts, at = _find_entries(text, at)
            top[name] = TextEntries(text, starts, defaults)
        else:
            top[name], at = _DECODER.raw_decode(text, at)
        at, is_open = _go_on(text, at, "{}")
    if at != len(text):
        raise ValueError("text follows the object")
    return top


def _find_entries(text: str, at: int) -> tuple["array[int]", int]:
    """Find the position of each entry of the list that begins at a position, and its end."""
    starts = array("q")
    at, is_open = _enter(text, at, "[]")
    while is_open:
        starts.append(at)
        _, at = _DECODER.raw_decode(text, at)
        at, is_open = _go_on(text, at, "[]")
    return starts, at


def _enter(text: str, at: int, brackets: str) -> tuple[int, bool]:
    """Go to the first item of a list or object, or behind it if it is empty."""
    if text[at : at + 1] != brackets[0]:
        raise ValueError("a bracket must be here")
    at = _skip(text, at + 1)
    if text[at : at + 1] == brackets[1]:
        return _skip(text, at + 1), False
    return at, True


def _go_on(text: str, at: int, brackets: str) -> tuple[int, bool]:
    """Go from the end of an item to the next one, or behind the last."""
    at = _skip(text, at)
    mark = text[at : at + 1]
    if mark not in (",", brackets[1]):
        raise ValueError("a comma or a bracket must be here")
    return _skip(text, at + 1), mark == ","


def _skip(text: str, at: int) -> int:
    """Skip white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at
