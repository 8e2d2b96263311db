"""Read the masks of a request to a refiner: files of a form, or JSON."""

from collections.abc import Mapping
from typing import Any

from pipeline.errors import DatasetError
from pipeline.server.batches import MaskRequest
from pipeline.server.options import ServeOptions
from pipeline.server.request_content import RequestError, decode_base64, parse_json
from pipeline.server.request_fields import FORM, MASKS, RefineFields, RequestFields
from pipeline.serving.refinements import read_masks


def decode_masks(
    masks: list[Any], fields: RequestFields, size_hw: tuple[int, ...]
) -> MaskRequest | None:
    """Decode the masks of a request to a refiner; return None for other models.

    Args:
        masks: of `list_masks`.
        fields: of the request.
        size_hw: of the photo.

    Raises:
        RequestError: a mask is damaged, or has not the photo's size.
    """
    if not isinstance(fields, RefineFields):
        return None
    height, width = size_hw[:2]
    try:
        rles = read_masks(masks, (height, width), name=MASKS)
    except DatasetError as error:
        raise RequestError(422, str(error)) from error
    return MaskRequest(rles, fields.max_change)


def list_masks(given: Any, kind: str, options: ServeOptions) -> list[Any]:  # noqa: ANN401
    """List the masks of a form's files or of JSON: segmentations, and PNG files as bytes.

    Raises:
        RequestError: there are none, too many or too large ones, or they have another form.
    """
    if kind == FORM:
        files = [each.encode() if isinstance(each, str) else each for each in given]
        if sum(map(len, files)) > options.max_bytes:
            raise RequestError(
                413, f"{MASKS}: together they may have {options.max_bytes} bytes; send fewer"
            )
        masks = [mask for each in files for mask in _read_mask_file(each)]
    elif isinstance(given, list):
        masks = given
    else:
        raise RequestError(422, f"{MASKS}: it is a {type(given).__name__}; send a list of masks")
    if not 0 < len(masks) <= options.max_masks:
        raise RequestError(
            422 if not masks else 413,
            f"{MASKS}: {len(masks) or 'no'} masks; a request may have 1 to {options.max_masks}",
        )
    return [_unpack(each, name=f"{MASKS}: mask {index}") for index, each in enumerate(masks)]


def _unpack(mask: Any, *, name: str) -> Any:  # noqa: ANN401
    """Take the segmentation out of a row, and decode base64: no text is taken for a path."""
    if isinstance(mask, Mapping) and "segmentation" in mask:
        mask = mask["segmentation"]
    return decode_base64(mask, name=name) if isinstance(mask, str) else mask


def _read_mask_file(data: bytes) -> list[Any]:
    """Read a file of a form: a PNG, or JSON with one mask, a list of masks or a list of rows."""
    start = data[:1024].lstrip()[:1]
    if start not in (b"[", b"{"):
        # What is no PNG either is refused with its number when the masks are decoded.
        return [data]
    example = "a PNG or a COCO results file"
    content = parse_json(data, "refine", name=f"{MASKS}: the file", example=example)
    return content if isinstance(content, list) else [content]
