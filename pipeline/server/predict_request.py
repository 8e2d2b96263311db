"""Read a request for a prediction: a photo, masks for a refiner, and options; a form or JSON.

Bodies are read up to their limit and no further. A photo is only ever the bytes in the request:
paths and URLs are refused, so no client can read what the server can.
"""

from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Any, NamedTuple

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pipeline.data.photo import FORMAT_NAMES, Photo, PhotoError, decode_photo
from pipeline.recipe import ModelTask
from pipeline.server.options import ServeOptions
from pipeline.server.request_content import EXAMPLES, RequestError, decode_base64, parse_json
from pipeline.server.request_fields import (
    FIELDS,
    FORM,
    JSON,
    MASK_FORMS,
    MASKS,
    PHOTO,
    RequestFields,
    list_names,
)
from pipeline.server.request_masks import list_masks
from pipeline.text import suggest

_FIELD_BYTES = 4096
"""Limit of all fields but the photo and the masks, and of the frame around the parts of a form."""


class RawRequest(NamedTuple):
    """A request whose photo and masks are not decoded yet."""

    photo: bytes
    masks: list[Any]
    """For a refiner: COCO segmentations and the bytes of PNG files."""
    fields: RequestFields


async def read_raw_request(
    request: Request, options: ServeOptions, task: ModelTask = "instance"
) -> RawRequest:
    """Read a request without decoding the photo or the masks.

    Raises:
        RequestError: it is empty, too large, malformed, or has wrong fields.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        content = await _read_form(request, options, task)
    elif kind == JSON:
        content = await _read_json(request, options, task)
    else:
        raise RequestError(
            415,
            f"content type {kind or 'none'!r}: send a form ({FORM}) with the file in the field "
            f"{PHOTO!r}, or {JSON} with its base64 in {PHOTO!r}",
        )
    photo = content.pop(PHOTO, None)
    masks = content.pop(MASKS, None) if task == "refine" else None
    fields = _check_fields(content, task, has_photo=photo is not None, has_masks=masks is not None)
    data = decode_base64(photo, name=PHOTO) if kind == JSON else photo
    if not isinstance(data, bytes):
        raise RequestError(422, f"{PHOTO}: it is text; upload the file itself: -F photo=@FILE")
    if not data:
        raise RequestError(422, f"{PHOTO}: the file is empty; send a {FORMAT_NAMES} file")
    if len(data) > options.max_bytes:
        raise _too_large(f"{PHOTO}: {len(data)} bytes", options)
    return RawRequest(data, [] if masks is None else list_masks(masks, kind, options), fields)


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


async def _read_form(request: Request, options: ServeOptions, task: ModelTask) -> dict[str, Any]:
    files = 1 + (options.max_masks if task == "refine" else 0)
    # The frame of a part of the form counts, too.
    limit = _count_parts(task) * options.max_bytes + files * _FIELD_BYTES
    parser = MultiPartParser(
        request.headers,
        _stream(request, limit, options),
        max_files=files,
        max_fields=len(list_names(task)),
        max_part_size=_FIELD_BYTES,
    )
    # No file is written to disk.
    parser.spool_max_size = limit
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:  # a wrong charset is a ValueError
        one = "one photo" if task == "refine" else "one file"
        text = f"the form cannot be read ({str(error)[:200]}); send {one} and each field once"
        raise RequestError(400, text) from error
    items = [(name, await _read_part(value)) for name, value in form.multi_items()]
    names = [name for name, _ in items]
    if not names:
        raise RequestError(400, f"the form is empty; send a photo in the field {PHOTO!r}")
    several = {MASKS} if task == "refine" else set()
    if twice := sorted({name for name in names if names.count(name) > 1} - several):
        raise RequestError(422, f"{', '.join(twice)}: given twice; send each field once")
    content: dict[str, Any] = dict(items)
    for name in several & content.keys():
        content[name] = [value for other, value in items if other == name]
    return content


async def _read_part(part: UploadFile | str) -> bytes | str:
    if isinstance(part, str):
        return part
    data = await part.read()
    await part.close()
    return data


async def _read_json(request: Request, options: ServeOptions, task: ModelTask) -> dict[str, Any]:
    limit = _count_parts(task) * -(-options.max_bytes // 3) * 4 + _FIELD_BYTES
    body = b"".join([chunk async for chunk in _stream(request, limit, options)])
    example = EXAMPLES[task]
    if not body:
        raise RequestError(400, f"the body is empty; send {example}")
    content = parse_json(body, task, name="the body", example=example)
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise RequestError(422, f"the body is a {kind}; send an object {example}")
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


def _count_parts(task: ModelTask) -> int:
    """Return how many times max_bytes a body may have: for the photo, and for all masks."""
    return 2 if task == "refine" else 1


def _check_fields(
    content: Mapping[str, Any], task: ModelTask, *, has_photo: bool, has_masks: bool
) -> RequestFields:
    problems = [] if has_photo else [f"{PHOTO}: missing; send a {FORMAT_NAMES} file"]
    if task == "refine" and not has_masks:
        problems.append(f"{MASKS}: missing; a mask is {MASK_FORMS}")
    try:
        fields = FIELDS[task].model_validate(content)
    except ValidationError as error:
        problems += [_describe(each, list_names(task)) for each in error.errors()]
    if problems:
        raise RequestError(422, "; ".join(problems))
    return fields


def _describe(error: ErrorDetails, known: Collection[str]) -> str:
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{name[:60]!r} is no field{suggest(name, known)}; there are: {', '.join(known)}"
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{name}: {message}, got {str(error['input'])[:60]!r}"
