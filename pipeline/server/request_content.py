"""Read JSON and base64 of requests, and refuse what would fill the memory."""

import base64
import binascii
import json
from typing import Any

from pipeline.errors import PipelineError
from pipeline.recipe import ModelTask
from pipeline.server.request_fields import MASKS, PHOTO

_MOST_VALUES: dict[ModelTask, int] = {"instance": 4096, "semantic": 4096, "refine": 1_000_000}
"""Values that JSON may have: each could become an object of many times its size."""

EXAMPLES: dict[ModelTask, str] = {
    "instance": f'{{"{PHOTO}": "BASE64"}}',
    "semantic": f'{{"{PHOTO}": "BASE64"}}',
    "refine": f'{{"{PHOTO}": "BASE64", "{MASKS}": [...]}}',
}
"""Bodies as JSON, for error messages."""


class RequestError(PipelineError):
    """A request that cannot be answered, with the status of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def parse_json(data: bytes, task: ModelTask, *, name: str, example: str) -> Any:  # noqa: ANN401
    """Parse JSON of a request, unless it has too many values.

    Args:
        data: the JSON.
        task: of the model.
        name: of the JSON in errors.
        example: what to send instead.

    Raises:
        RequestError: it is not such JSON.
    """
    most = _MOST_VALUES[task]
    if sum(map(data.count, (b"[", b"{", b","))) > most:
        raise RequestError(
            400,
            f"{name} is not JSON with one photo: it has more than {most} values; send {example}",
        )
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"{name} is not JSON ({error}); send {example}") from error


def decode_base64(given: object, *, name: str) -> bytes:
    """Decode a file.

    Raises:
        RequestError: it is not base64 text.
    """
    if not isinstance(given, str):
        kind = type(given).__name__
        raise RequestError(422, f"{name}: it is a {kind}; send the file's bytes as base64 text")
    try:
        return base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            422,
            f"{name}: it is not base64 ({error}). Send the bytes of a file; paths and URLs are "
            "not read",
        ) from error
