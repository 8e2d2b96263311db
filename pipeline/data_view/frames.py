"""Frames of label maps: the map over the photo, and the targets that a model is trained on."""

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from bsm.configs.semantic import SemanticTargetConfig
from bsm.semantic.field import ClassTargets, SemanticTargets, targets_from_semantic_field
from pipeline.data.augment import decode_row
from pipeline.data.collate_semantic import decode_planes
from pipeline.data.manifest import Manifest
from pipeline.data_view.objects import TARGET_COLORS
from pipeline.data_view.options import ViewOptions
from pipeline.report.draw import Pixels, resize_nearest
from pipeline.report.label_picture import ClassColor
from pipeline.run_report.page import Picture, encode_picture
from pipeline.run_report.pictures import join_panels

_FRAME_PX = 420
_BANDS = ("boundary", "contraction", "expansion")


def draw_frame_targets(
    row: pa.Table,
    options: ViewOptions,
    manifest: Manifest,
    *,
    categories: set[int],
    colors: list[ClassColor],
) -> Picture | None:
    """Draw a frame five times: photo, label map, boundary, contraction and expansion.

    The bands are those of the chosen classes together, at the size of the stored photo.

    Returns:
        The picture; None if the frame has none of the classes.
    """
    planes = {name: torch.from_numpy(plane)[None] for name, plane in decode_planes(row, 0).items()}
    targets = SemanticTargets(
        **planes, zoom=torch.ones(1), sample_seed=torch.zeros(1, dtype=torch.int64)
    )
    found: ClassTargets = targets_from_semantic_field(
        targets,
        num_classes=len(manifest.categories),
        kernel_size=options.kernel_size or SemanticTargetConfig().kernel_size,
        unite_boundary=SemanticTargetConfig().unite_boundary,
    )
    shown = [index for index in sorted(categories) if found.present[0, index]]
    if not shown:
        return None
    photo = decode_row(row, 0)
    size_hw = max(1, round(_FRAME_PX * photo.shape[0] / photo.shape[1])), _FRAME_PX
    small = np.asarray(
        cv2.resize(photo, size_hw[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8
    )
    panels = [small, _draw_labels(small, planes["label"][0].numpy(), colors)]
    for name in _BANDS:
        band = getattr(found, name)[0, shown].any(dim=0).numpy()
        panel = (small * 0.55).astype(np.uint8)
        panel[resize_nearest(band, size_hw)] = TARGET_COLORS[name]
        panels.append(panel)
    names = tuple(manifest.categories[index].name for index in shown)
    return encode_picture(join_panels(panels), row["file_name"][0].as_py(), tags=names)


def _draw_labels(small: Pixels, label: NDArray[np.uint8], colors: list[ClassColor]) -> Pixels:
    resized = resize_nearest(label, (small.shape[0], small.shape[1]))
    drawn = small * 0.45
    for each in colors:
        drawn[resized == each.value] += np.array(each.color) * 0.55
    return drawn.astype(np.uint8)
