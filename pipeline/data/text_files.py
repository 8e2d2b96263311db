"""Decode text and JSON files, also those that Windows' programs write.

One rule for both: a byte-order mark names the encoding and is no part of the text; without one the
text is UTF-8, or the UTF-16 or UTF-32 that its zero bytes show, as in JSON.
"""

import json

from bsm.checkpoints.foreign_files import describe_foreign_file


def decode_text(data: bytes) -> str:
    """Decode a text file.

    Raises:
        UnicodeDecodeError: it has another encoding.
    """
    return data.decode(json.detect_encoding(data))


def parse_json(data: bytes) -> object:
    """Parse a JSON file.

    Raises:
        ValueError: it is not JSON, for instance because it was truncated.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("its lists are nested too deeply") from error
    except ValueError:
        if foreign := describe_foreign_file(data[:128]):
            raise ValueError(foreign) from None
        raise
