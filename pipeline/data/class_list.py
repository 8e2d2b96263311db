"""Read a list of classes: one per line, NAME or VALUE NAME."""

import re
from collections.abc import Sequence

from pipeline import storage
from pipeline.data.semantic_fields import VOID
from pipeline.data.source_index import UNKNOWN_VALUE
from pipeline.data.text_files import decode_text
from pipeline.errors import DatasetError

_NAME_AND_VALUE = re.compile(r".*\S[\s:,;=]+([0-9]+)")
_VALUE_AND_NAME = re.compile(r"([0-9]+)[\s:,;=]+(\S.*)")

_OTHER_FORMATS = ("[", "{", '"', "'", "- ")
"""How lines of JSON and YAML start."""


def read_class_list(uri: str) -> dict[int, str]:
    """Read the class names by label value from a file; for errors see `parse_class_list`."""
    try:
        text = decode_text(storage.read_bytes(uri))
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{uri} is not a text in UTF-8 (byte {error.start}: {error.reason}). Save it as UTF-8"
        ) from error
    return parse_class_list(text.splitlines(), where=uri)


def parse_class_list(lines: Sequence[str], *, where: str) -> dict[int, str]:
    """Return the class names by label value: the line's own value, or its place in the list.

    Args:
        lines: of a file, or the words of a flag.
        where: their origin, for messages.

    Raises:
        DatasetError: all rules that the list breaks.
    """
    lines = [line.strip() for line in lines if line.strip()]
    found = [_VALUE_AND_NAME.fullmatch(line) for line in lines]
    pairs = [(int(each[1]), each[2]) for each in found if each]
    if not pairs:
        pairs = list(enumerate(lines))
    names = dict(pairs)
    # "lane 1" may be a name; with a value before it, it is.
    last = [each[1] for line in lines if (each := _NAME_AND_VALUE.fullmatch(line))]
    are_swapped = not any(found) and len(lines) == len(set(last)) > 1
    bare = [line for line, each in zip(lines, found, strict=True) if not each]
    odd = [name for _, name in pairs if name.startswith(_OTHER_FORMATS) or not name.isprintable()]
    rules = [
        (len(lines) > 0, "it is empty"),
        (
            len(bare) in (0, len(lines)),
            f"{len(bare)} of {len(lines)} lines have no value, such as {bare[:1]}; give all lines "
            "one, or none",
        ),
        (not are_swapped, f"every line ends in a number, such as {lines[:1]}; put values first"),
        (not odd, f"{odd[:1]} is not a name"),
        (len(names) == len(pairs), "a value is used twice"),
        (len({name for _, name in pairs}) == len(pairs), "a name is used twice"),
        (all(value < VOID for value in names), f"values must be in 0..{VOID - 1}"),
        (len(names) <= UNKNOWN_VALUE, f"at most {UNKNOWN_VALUE} classes are supported"),
    ]
    wrong = [text for holds, text in rules if not holds]
    if wrong:
        raise DatasetError(
            f"{where}: {'; '.join(wrong)}. Write one class per line: NAME, or VALUE NAME"
        )
    return names
