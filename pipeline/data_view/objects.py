"""Objects of a photo: their masks on it, and the targets that a mask head is trained on."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from bsm.configs.shared import TargetConfig
from bsm.field import MaskTargets
from bsm.instance.roi_targets import MaskRois, make_grid_targets
from bsm.instance.tensors import Targets
from pipeline.data.augment import decode_row
from pipeline.data.batch import row_sizes
from pipeline.data.collate import collate_for_test
from pipeline.data.manifest import Manifest
from pipeline.data.photo import Pixels
from pipeline.data_view.options import Size, ViewOptions, name_size
from pipeline.recipe import DataConfig
from pipeline.report.draw import Color, decode_instance, draw_instances
from pipeline.run_report.page import Picture, encode_picture
from pipeline.run_report.pictures import join_panels

COLUMNS = ("boxes_xyxy", "category_index", "is_crowd", "squeeze_field", "area_px", "rle")

TARGET_COLORS: dict[str, Color] = {
    "mask": (86, 180, 233),
    "boundary": (255, 200, 40),
    "contraction": (255, 70, 200),
    "expansion": (80, 220, 160),
}

_PANEL_PX = 200
_PHOTO_PX = 480


class ShownObject(NamedTuple):
    """An object that the options select."""

    slot: int
    """Its place among the objects of the photo that are no crowds."""
    box_xyxy: tuple[float, float, float, float]
    category: str
    category_index: int
    size: Size
    rle: dict[str, Any]


def list_objects(
    row: pa.Table, options: ViewOptions, manifest: Manifest, *, categories: set[int]
) -> list[ShownObject]:
    """List the objects of a photo that the options select; crowds have no targets."""
    content = {name: row[name][0].as_py() for name in COLUMNS if name != "squeeze_field"}
    names = [each.name for each in manifest.categories]
    height, width = row_sizes(row)[0]
    kept = [place for place, is_crowd in enumerate(content["is_crowd"]) if not is_crowd]
    shown = []
    for slot, place in enumerate(kept):
        index, size = content["category_index"][place], name_size(content["area_px"][place])
        if index in categories and size in options.size:
            rle = {"size": [height, width], "counts": content["rle"][place]}
            box = tuple(content["boxes_xyxy"][place])
            shown.append(ShownObject(slot, box, names[index], index, size, rle))
    return shown


def draw_photo(row: pa.Table, objects: Sequence[ShownObject]) -> Picture:
    """Draw the masks of the objects on their photo."""
    photo = decode_row(row, 0)
    scale = min(1.0, _PHOTO_PX / max(photo.shape[:2]))
    drawn = draw_instances(
        photo,
        [
            decode_instance(each.rle, category_index=each.category_index, name=each.category)
            for each in objects
        ],
        min_side_px=0 if scale < 1 else _PHOTO_PX // 2,
    )
    if scale < 1:
        drawn = drawn.resize((round(drawn.width * scale), round(drawn.height * scale)))
    tags = tuple(dict.fromkeys(tag for each in objects for tag in (each.category, each.size)))
    return encode_picture(drawn, row["file_name"][0].as_py(), tags=tags)


def draw_targets(
    row: pa.Table, objects: Sequence[ShownObject], options: ViewOptions
) -> list[Picture]:
    """Draw the four targets of each object on its photo, in its true box as the RoI."""
    photo, name = decode_row(row, 0), row["file_name"][0].as_py()
    targets = _make_targets(row, objects, options)
    return [
        encode_picture(
            _draw_object(photo, each, [plane[number].numpy() > 0 for plane in targets]),
            f"{each.category}, {each.size}, {name}",
            tags=(each.category, each.size),
        )
        for number, each in enumerate(objects)
    ]


def _make_targets(
    row: pa.Table, objects: Sequence[ShownObject], options: ViewOptions
) -> MaskTargets:
    batch = collate_for_test(
        row, DataConfig(), with_targets=True, with_masks=options.source == "roi"
    )
    scale = batch.image_sizes_hw[0].flip(0) / batch.original_sizes_hw[0].flip(0)
    boxes = torch.tensor([each.box_xyxy for each in objects]) * scale.repeat(2)
    count = len(objects)
    rois = MaskRois(
        rois=torch.cat([torch.zeros(count, 1), boxes], dim=1),
        category_index=torch.tensor([each.category_index for each in objects]),
        target_slot=torch.tensor([each.slot for each in objects]),
        weights=torch.ones(count),
        identity=torch.arange(count),
    )
    kernel_size = options.kernel_size or TargetConfig().kernel_size
    config = TargetConfig(source=options.source, kernel_size=kernel_size)
    targets = cast(Targets, batch.targets)
    return make_grid_targets(rois, targets, config=config, side=options.side)


def _draw_object(
    photo: Pixels, shown: ShownObject, planes: Sequence[NDArray[np.bool_]]
) -> Image.Image:
    """Draw the photo in the object's box, then each target over it, stretched to squares."""
    left, top, right, bottom = shown.box_xyxy
    rows = slice(int(top), max(math.ceil(bottom), int(top) + 1))
    columns = slice(int(left), max(math.ceil(right), int(left) + 1))
    crop = photo[rows, columns]
    size = (_PANEL_PX, _PANEL_PX)
    large = np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    panels = [large]
    for plane, color in zip(planes, TARGET_COLORS.values(), strict=True):
        cells = cv2.resize(plane.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        panel = (large * 0.55).astype(np.uint8)
        panel[cells] = panel[cells] * 0.35 + np.array(color) * 0.65
        panels.append(panel)
    return join_panels(panels)
