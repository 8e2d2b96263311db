"""Encode predicted masks at the size of the image, as compressed RLE.

Masks are small squares of probabilities over their boxes. On a GPU they are pasted into the image
in chunks under a byte budget, and each chunk is encoded before the next one is pasted: a hundred
dense masks of 12 megapixels would not fit in memory. On the CPU no whole image is made at all.
"""

import torch
from pycocotools import mask as mask_api
from torch import Tensor

from bsm.instance.paste import paste_masks, paste_strips
from pipeline.evaluation.encode_strips import MaskStrip, encode_strips


def paste_and_encode(
    mask_probs: Tensor, boxes_xyxy: Tensor, *, size_hw: tuple[int, int], paste_bytes: int
) -> list[bytes]:
    """Paste masks (D, M, M) from their boxes (D, 4) into an image, and encode each.

    Args:
        mask_probs: over the boxes, 0 to 1.
        boxes_xyxy: in pixels of the image, not necessarily inside it.
        size_hw: of the image.
        paste_bytes: largest number of bytes of dense masks at a time.
    """
    if mask_probs.device.type == "cpu":
        return [
            _encode_one(probs, box, size_hw=size_hw)
            for probs, box in zip(mask_probs, boxes_xyxy, strict=True)
        ]
    return [
        counts
        for _, masks in paste_masks(
            mask_probs, boxes_xyxy, size_hw=size_hw, byte_budget=paste_bytes
        )
        for counts in encode_masks(masks)
    ]


def encode_masks(masks: Tensor) -> list[bytes]:
    """Encode (d, H, W) bool as compressed RLE, one by one to save memory."""
    return [
        # RLE goes down the columns: the encoder reads a transposed, contiguous mask.
        mask_api.encode(mask.t().contiguous().cpu().view(torch.uint8).numpy().T)["counts"]
        for mask in masks
    ]


def _encode_one(probs: Tensor, box_xyxy: Tensor, *, size_hw: tuple[int, int]) -> bytes:
    strips = paste_strips(probs, box_xyxy, size_hw=size_hw)
    return encode_strips(
        (MaskStrip(left, top, columns.numpy()) for left, top, columns in strips), size_hw=size_hw
    )
