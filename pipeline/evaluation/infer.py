"""Detect the objects of a batch at the size of the original images.

The model returns masks as small squares of probabilities; encode_masks.py pastes them into the
image.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bsm.instance import tensors
from pipeline.data.batch import Batch
from pipeline.evaluation.encode_masks import paste_and_encode
from pipeline.evaluation.timing import Stopwatch


class Detection(NamedTuple):
    """One detected object, in pixels of the original image."""

    image_id: int
    category_index: int
    score: float
    box_xyxy: tuple[float, float, float, float]
    rle_counts: bytes
    """Compressed RLE of the mask at image size."""
    size_hw: tuple[int, int]
    """Size of the image."""


@torch.inference_mode()
def detect(
    model: nn.Module,
    batch: Batch,
    *,
    paste_bytes: int,
    in_true_boxes: bool = False,
    watch: Stopwatch | None = None,
) -> list[list[Detection]]:
    """Detect the objects of a batch, or predict masks in its true boxes.

    Boxes are scaled to the original size and clipped to the image; boxes without area are dropped,
    as in detectron2.

    Args:
        model: returns `bsm.instance.tensors.Detections` in evaluation mode; its mode is restored.
        batch: on the model's device.
        paste_bytes: largest number of bytes of dense masks at a time.
        in_true_boxes: predict masks in the boxes of the batch's targets, with scores of 1.
        watch: times the forward pass, without postprocessing.

    Returns:
        Detections per image, best first; with true boxes in their order.
    """
    watch = watch or Stopwatch(batch.images.device)

    def infer() -> tensors.Detections:
        if in_true_boxes:
            return _predict_in_true_boxes(model, batch)
        found: tensors.Detections = model(batch.images, batch.image_sizes_hw)
        return found

    was_training = model.training
    model.eval()
    try:
        found = watch.time(infer, images=len(batch.images))
    finally:
        model.train(was_training)
    return to_image_size(found, batch, paste_bytes=paste_bytes)


def to_image_size(
    found: tensors.Detections, batch: Batch, *, paste_bytes: int
) -> list[list[Detection]]:
    """Scale the boxes of a batch to the original images, and paste the masks there.

    For arguments and results see `detect`.
    """
    boxes_xyxy = _scale_boxes(
        found.boxes_xyxy, from_hw=batch.image_sizes_hw, to_hw=batch.original_sizes_hw
    )
    sides = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    valid = (found.valid & (sides > 0).all(-1)).cpu()
    found = found._replace(boxes_xyxy=boxes_xyxy, valid=valid)
    return [
        _list_detections(
            found, row, image_id=image_id, size_hw=(height, width), paste_bytes=paste_bytes
        )
        for row, (image_id, (height, width)) in enumerate(
            zip(batch.image_id.tolist(), batch.original_sizes_hw.tolist(), strict=True)
        )
    ]


def to_results(
    detections: Sequence[Detection], category_ids: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Convert detections to rows of a COCO results file.

    Args:
        detections: of an image, from `detect`.
        category_ids: category_id by category_index.
    """
    return [
        {
            "image_id": each.image_id,
            "category_id": category_ids[each.category_index],
            "score": each.score,
            "bbox": _to_xywh(each.box_xyxy),
            "segmentation": {"size": list(each.size_hw), "counts": each.rle_counts.decode()},
        }
        for each in detections
    ]


def _predict_in_true_boxes(model: Any, batch: Batch) -> tensors.Detections:  # noqa: ANN401  any model
    targets: Any = batch.targets  # of instances
    probs = model.predict_masks(
        batch.images, batch.image_sizes_hw, targets.boxes_xyxy, targets.category_index
    )
    return tensors.Detections(
        targets.boxes_xyxy, targets.valid.float(), targets.category_index, targets.valid, probs
    )


def _scale_boxes(boxes_xyxy: Tensor, *, from_hw: Tensor, to_hw: Tensor) -> Tensor:
    from_whwh = from_hw.to(boxes_xyxy).flip(-1).repeat(1, 2)[:, None]
    to_whwh = to_hw.to(boxes_xyxy).flip(-1).repeat(1, 2)[:, None]
    scaled = boxes_xyxy * (to_whwh / from_whwh)
    return torch.minimum(scaled.clamp(min=0), to_whwh)


def _list_detections(
    found: tensors.Detections,
    row: int,
    *,
    image_id: int,
    size_hw: tuple[int, int],
    paste_bytes: int,
) -> list[Detection]:
    kept = found.valid[row].nonzero()[:, 0].to(found.boxes_xyxy.device)
    boxes_xyxy = found.boxes_xyxy[row, kept]
    probs = found.mask_probs[row, kept]
    counts = paste_and_encode(probs, boxes_xyxy, size_hw=size_hw, paste_bytes=paste_bytes)
    return [
        Detection(image_id, index, score, (box[0], box[1], box[2], box[3]), packed, size_hw)
        for index, score, box, packed in zip(
            found.category_index[row, kept].tolist(),
            found.scores[row, kept].tolist(),
            boxes_xyxy.tolist(),
            counts,
            strict=True,
        )
    ]


def _to_xywh(box: tuple[float, float, float, float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
