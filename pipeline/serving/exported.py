"""The description inside an exported model: JSON, to use it without this package.

The graph takes one photo, resized and padded by its user, and normalizes it itself:

    images            (1, 3, H, W) uint8 RGB, zeros to the right and below; H and W are multiples of
                      `pad_multiple`
    image_sizes_hw    (1, 2) int64, the size without the padding

It needs neither torch nor Ray: pipeline/serving/onnx_predictor.py is the whole rest.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pipeline.data.manifest import Category
from pipeline.data.text_files import parse_json, to_typed
from pipeline.errors import RegistryError

INFO_KEY = "bsm"
"""Key of the JSON among the properties of an ONNX file; a torch.export archive has bsm.json."""

INPUTS = ("images", "image_sizes_hw")

OUTPUTS = {
    "instance": ("boxes_xyxy", "scores", "category_index", "valid", "mask_probs"),
    "semantic": ("logits",),
}
"""Instance: D slots, best first, boxes in pixels of the input and masks (M, M) over their boxes, as
`bsm.instance.tensors.Detections`. Semantic: (1, K, H, W)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportInfo:
    """The preparation of photos for an exported model, and the meaning of its outputs."""

    format_version: int = 1
    model: str
    """models:/NAME/VERSION."""
    task: Literal["instance", "semantic"]
    categories: tuple[Category, ...]
    """In the order of category_index."""
    pixel_mean: tuple[float, ...]
    """RGB, subtracted in the graph."""
    pixel_std: tuple[float, ...]
    """RGB, divided by in the graph."""
    short_edge_px: int | None
    """Instance: photos are resized to this short edge."""
    long_edge_px: int | None
    """Instance: or to a smaller one, with which the long edge does not exceed this."""
    size_hw: tuple[int, int] | None
    """Semantic: photos are resized to this; None keeps their size."""
    pad_multiple: int
    fixed_hw: tuple[int, int] | None = None
    """The only size of `images`, with padding; None for any."""
    detections: int | None = None
    """Instance: number of slots."""
    license: str = ""
    """Of the weights; "" is not stated."""
    data_license: str = ""
    """Of the training data; "" is not stated."""
    recipe_fingerprint: str = ""
    """Of the recipe of the model's run."""

    def to_json(self) -> str:
        """Serialize it."""
        return json.dumps(asdict(self), indent=1)


def info_from_json(text: str) -> ExportInfo:
    """Parse the output of `ExportInfo.to_json`.

    Raises:
        RegistryError: the text is not such JSON, or that of a later version.
    """
    try:
        plain: Any = parse_json(text)
        version = plain["format_version"]
        if version != 1:
            raise RegistryError(
                f"the model was exported in format {version!r:.40}, this version reads format 1; "
                "update this package, or export the model again"
            )
        known = {each.name for each in fields(ExportInfo)}
        info = to_typed(ExportInfo, {name: plain[name] for name in plain if name in known})
    except (ValueError, TypeError, KeyError) as error:
        raise RegistryError(
            f"the description inside the model file is damaged ({error}); export it again"
        ) from error
    if info.pad_multiple < 1:
        raise RegistryError(
            f"the description inside the model file is damaged (pad_multiple is "
            f"{info.pad_multiple}, which must be 1 or more); export it again"
        )
    return info
