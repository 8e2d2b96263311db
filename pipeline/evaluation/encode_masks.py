"""Encode predicted masks at the size of the image, as compressed RLE.

Masks are small squares of probabilities over their boxes. On a GPU they are pasted into the image
in chunks under a byte budget, and each chunk is encoded before the next one is pasted: a hundred
dense masks of 12 megapixels would not fit in memory. On the CPU no whole image is made at all.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_api
from torch import Tensor
from torch.nn import functional as F

from bsm.instance.paste import paste_masks, paste_strips
from pipeline.data.run_lengths import encode_spans

_NO_SPANS: NDArray[np.int64] = np.empty(0, dtype=np.int64)


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
    height = size_hw[0]
    starts, stops = [_NO_SPANS], [_NO_SPANS]
    for left, top, columns in paste_strips(probs, box_xyxy, size_hw=size_hw):
        # A span starts and stops where a pixel differs from the one above it.
        padded = F.pad(columns, (1, 1)).numpy()
        edges = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
        column, row = np.divmod(edges, padded.shape[1] - 1)
        pixels = (left + column) * height + top + row
        starts.append(pixels[0::2])
        stops.append(pixels[1::2])
    all_starts, all_stops = np.concatenate(starts), np.concatenate(stops)
    # A span that reaches the bottom of the image goes on at the top of the next column.
    apart = all_starts[1:] != all_stops[:-1]
    return encode_spans(
        np.append(all_starts[:1], all_starts[1:][apart]),
        np.append(all_stops[:-1][apart], all_stops[-1:]),
        size_hw=size_hw,
    ).encoded
