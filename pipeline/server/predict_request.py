"""Read a request for a prediction: a photo and options, as a form or as JSON.

Bodies are read up to their limit and no further. A photo is only ever the bytes in the request:
paths and URLs are refused, so no client can read what the server can.
"""

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal, NamedTuple

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pipeline.data.photo import FORMAT_NAMES, Photo, PhotoError, decode_photo
from pipeline.errors import PipelineError
from pipeline.server.options import ServeOptions
from pipeline.serving.artifacts import SCORE_THRESHOLD
from pipeline.text import suggest

PHOTO = "photo"
FORM, JSON = "multipart/form-data", "application/json"

_FIELD_BYTES = 4096
"""Limit of all fields but the photo, and of the frame around the parts of a form."""


class RequestError(PipelineError):
    """A request that cannot be answered, with the status of the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class PredictFields(BaseModel):
    """All fields of a request for a prediction but the photo."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    score_threshold: float = Field(
        SCORE_THRESHOLD, ge=0, le=1, description="Leave out detections with a lower score."
    )
    format: Literal["rle", "polygons", "png"] = Field(
        "rle",
        description="Masks as COCO run lengths, as COCO polygons (without holes), or a PNG of the "
        "photo with the masks drawn on it.",
    )
    model: str = Field("", description="Name in /models; by default the first one.")


class RawRequest(NamedTuple):
    """A request whose photo is not decoded yet."""

    photo: bytes
    fields: PredictFields


async def read_raw_request(request: Request, options: ServeOptions) -> RawRequest:
    """Read a request without decoding the photo.

    Raises:
        RequestError: it is empty, too large, malformed, or has wrong fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        content = await _read_form(request, options)
    elif kind == JSON:
        content = await _read_json(request, options)
    else:
        raise RequestError(
            415,
            f"content type {kind or 'none'!r}: send a form ({FORM}) with the file in the field "
            f"{PHOTO!r}, or {JSON} with its base64 in {PHOTO!r}",
        )
    photo = content.pop(PHOTO, None)
    fields = _check_fields(content, has_photo=photo is not None)
    data = _decode_base64(photo) if kind == JSON else photo
    if not isinstance(data, bytes):
        raise RequestError(422, f"{PHOTO}: it is text; upload the file itself: -F photo=@FILE")
    if not data:
        raise RequestError(422, f"{PHOTO}: the file is empty; send a {FORMAT_NAMES} file")
    if len(data) > options.max_bytes:
        raise _too_large(f"{PHOTO}: {len(data)} bytes", options)
    return RawRequest(data, fields)


def decode(data: bytes, options: ServeOptions) -> Photo:
    """Decode the photo of a request.

    Raises:
        RequestError: it is no photo, damaged, or has too many pixels.
    """
    try:
        return decode_photo(data, max_pixels=options.max_pixels)
    except PhotoError as error:
        too_large = error.kind == "image_too_large"
        fix = "send a smaller one" if too_large else f"send a complete {FORMAT_NAMES} file"
        raise RequestError(413 if too_large else 422, f"{PHOTO}: {error}; {fix}") from error


async def _read_form(request: Request, options: ServeOptions) -> dict[str, Any]:
    limit = options.max_bytes + _FIELD_BYTES
    parser = MultiPartParser(
        request.headers,
        _stream(request, limit, options),
        max_files=1,
        max_fields=len(PredictFields.model_fields) + 1,
        max_part_size=_FIELD_BYTES,
    )
    # No file is written to disk.
    parser.spool_max_size = limit
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:  # a wrong charset is a ValueError
        text = f"the form cannot be read ({str(error)[:200]}); send one file and each field once"
        raise RequestError(400, text) from error
    names = [name for name, _ in form.multi_items()]
    if not names:
        raise RequestError(400, f"the form is empty; send a photo in the field {PHOTO!r}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RequestError(422, f"{', '.join(twice)}: given twice; send each field once")
    content: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            content[name] = await value.read()
            await value.close()
        else:
            content[name] = value
    return content


async def _read_json(request: Request, options: ServeOptions) -> dict[str, Any]:
    limit = -(-options.max_bytes // 3) * 4 + _FIELD_BYTES
    body = b"".join([chunk async for chunk in _stream(request, limit, options)])
    if not body:
        raise RequestError(400, f'the body is empty; send {{"{PHOTO}": "BASE64"}}')
    if sum(map(body.count, (b"[", b"{", b","))) > _FIELD_BYTES:
        # Each could become an object of many times its size; no photo and no field has them.
        raise RequestError(
            400,
            f"the body is not JSON with one photo: it has more than {_FIELD_BYTES} values; send "
            f'{{"{PHOTO}": "BASE64"}}',
        )
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            400, f'the body is not JSON ({error}); send {{"{PHOTO}": "BASE64"}}'
        ) from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise RequestError(422, f'the body is a {kind}; send an object {{"{PHOTO}": "BASE64"}}')
    return content


async def _stream(
    request: Request, limit: int, options: ServeOptions
) -> AsyncGenerator[bytes, None]:
    """Yield a body in chunks, up to its limit."""
    listed = request.headers.get("content-length", "")
    if listed.isdigit() and int(listed) > limit:
        raise _too_large(f"the body has {listed} bytes", options)
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if read > limit:
            raise _too_large(f"the body has more than {limit} bytes", options)
        yield chunk


def _too_large(what: str, options: ServeOptions) -> RequestError:
    return RequestError(413, f"{what}; a photo may have {options.max_bytes}: send a smaller one")


def _check_fields(content: Mapping[str, Any], *, has_photo: bool) -> PredictFields:
    problems = [] if has_photo else [f"{PHOTO}: missing; send a {FORMAT_NAMES} file"]
    try:
        fields = PredictFields.model_validate(content)
    except ValidationError as error:
        problems += [_describe(each) for each in error.errors()]
    if problems:
        raise RequestError(422, "; ".join(problems))
    return fields


def _describe(error: ErrorDetails) -> str:
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        known = [PHOTO, *PredictFields.model_fields]
        return f"{name[:60]!r} is no field{suggest(name, known)}; there are: {', '.join(known)}"
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{name}: {message}, got {str(error['input'])[:60]!r}"


def _decode_base64(photo: object) -> bytes:
    if not isinstance(photo, str):
        kind = type(photo).__name__
        raise RequestError(422, f"{PHOTO}: it is a {kind}; send the file's bytes as base64 text")
    try:
        return base64.b64decode(photo, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            422,
            f"{PHOTO}: it is not base64 ({error}). Send the bytes of a file; paths and URLs are "
            "not read",
        ) from error
