"""From a batch to detections at the size of the original photos.

Masks leave the model as small squares of probabilities. They are pasted into the photo in chunks
under a byte budget, and each chunk becomes run lengths before the next one is made: a hundred
objects on a photo of 12 megapixels never exist as a hundred dense masks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pycocotools import mask as mask_api
from torch import Tensor, nn

from bsm.instance import tensors
from bsm.instance.paste import paste_masks
from pipeline.data.batch import Batch
from pipeline.evaluation.timing import Stopwatch


class Detection(NamedTuple):
    """One object that a model found, in the pixels of the original image."""

    image_id: int
    category_index: int
    score: float
    box_xyxy: tuple[float, float, float, float]
    rle_counts: bytes
    """COCO's compressed run lengths of the mask, at image size."""
    size_hw: tuple[int, int]
    """The image's height and width."""


@torch.inference_mode()
def detect(
    model: nn.Module,
    batch: Batch,
    *,
    paste_bytes: int,
    in_true_boxes: bool = False,
    watch: Stopwatch | None = None,
) -> list[list[Detection]]:
    """Find the objects in a batch, or draw the masks of those that are there.

    Boxes are scaled back to the original size and clipped to the image; those that are then without
    area are left out, as detectron2 does.

    Args:
        model: gives `bsm.instance.tensors.Detections` in evaluation mode; its own mode is kept.
        batch: on the model's device.
        paste_bytes: dense masks take at most so many bytes at a time.
        in_true_boxes: draw masks in the boxes of the batch's targets, each with a score of 1.
        watch: times the pass of the model, without what follows it.

    Returns:
        For each image of the batch its detections, best first; those in true boxes in their order.
    """
    watch = watch or Stopwatch(batch.images.device)

    def find() -> tensors.Detections:
        if in_true_boxes:
            return _in_true_boxes(model, batch)
        found: tensors.Detections = model(batch.images, batch.image_sizes_hw)
        return found

    was_training = model.training
    model.eval()
    try:
        found = watch.time(find, images=len(batch.images))
    finally:
        model.train(was_training)
    original_hw = batch.original_sizes_hw.to(found.boxes_xyxy.device)
    boxes_xyxy = _at_original_size(
        found.boxes_xyxy, from_hw=batch.image_sizes_hw, to_hw=original_hw
    )
    sides = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    keep = (found.valid & (sides > 0).all(-1)).cpu()
    return [
        _of_image(
            found._replace(boxes_xyxy=boxes_xyxy),
            place,
            keep[place],
            image_id=int(batch.image_id[place]),
            size_hw=(
                int(batch.original_sizes_hw[place, 0]),
                int(batch.original_sizes_hw[place, 1]),
            ),
            paste_bytes=paste_bytes,
        )
        for place in range(len(keep))
    ]


def to_results(
    detections: Sequence[Detection], category_ids: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Write detections as rows of a COCO results file.

    Args:
        detections: what `detect` gives for an image.
        category_ids: category_id by category_index.
    """
    return [
        {
            "image_id": each.image_id,
            "category_id": category_ids[each.category_index],
            "score": each.score,
            "bbox": _xywh(each.box_xyxy),
            "segmentation": {"size": list(each.size_hw), "counts": each.rle_counts.decode()},
        }
        for each in detections
    ]


def _in_true_boxes(model: Any, batch: Batch) -> tensors.Detections:  # noqa: ANN401  any model
    targets: Any = batch.targets  # of instances
    probs = model.masks_for_boxes(
        batch.images, batch.image_sizes_hw, targets.boxes_xyxy, targets.category_index
    )
    return tensors.Detections(
        targets.boxes_xyxy, targets.valid.float(), targets.category_index, targets.valid, probs
    )


def _at_original_size(boxes_xyxy: Tensor, *, from_hw: Tensor, to_hw: Tensor) -> Tensor:
    from_whwh = from_hw.to(boxes_xyxy).flip(-1).repeat(1, 2)[:, None]
    to_whwh = to_hw.to(boxes_xyxy).flip(-1).repeat(1, 2)[:, None]
    scaled = boxes_xyxy * (to_whwh / from_whwh)
    return torch.minimum(scaled.clamp(min=0), to_whwh)


def _of_image(
    found: tensors.Detections,
    place: int,
    keep: Tensor,
    *,
    image_id: int,
    size_hw: tuple[int, int],
    paste_bytes: int,
) -> list[Detection]:
    slots = keep.nonzero()[:, 0].to(found.boxes_xyxy.device)
    boxes_xyxy = found.boxes_xyxy[place, slots]
    probs = found.mask_probs[place, slots]
    counts = [
        packed
        for _, masks in paste_masks(probs, boxes_xyxy, size_hw=size_hw, byte_budget=paste_bytes)
        for packed in _encode(masks)
    ]
    return [
        Detection(image_id, index, score, (box[0], box[1], box[2], box[3]), packed, size_hw)
        for index, score, box, packed in zip(
            found.category_index[place, slots].tolist(),
            found.scores[place, slots].tolist(),
            boxes_xyxy.tolist(),
            counts,
            strict=True,
        )
    ]


def _encode(masks: Tensor) -> list[bytes]:
    """Turn (d, H, W) bool into compressed run lengths, one by one, so that no second chunk is."""
    return [
        # Run lengths go down the columns: a transposed, contiguous mask is what the encoder reads.
        mask_api.encode(mask.t().contiguous().cpu().view(torch.uint8).numpy().T)["counts"]
        for mask in masks
    ]


def _xywh(box: tuple[float, float, float, float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
