"""Draw a data set in the COCO layout of any number of images, for what only depends on its size."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SPLIT = "drawn"
_CATEGORIES, _CORNERS, _DIFFERENT = 80, 24, 16


def write_coco_folder(root: Path, *, images: int, objects: int, size_hw: tuple[int, int]) -> None:
    """Write ROOT/drawn/*.jpg and ROOT/annotations/instances_drawn.json; a complete one is kept.

    Args:
        root: the folder.
        images: that count; a few different pictures in turn.
        objects: of each image, outlined by polygons of 24 corners.
        size_hw: of an image.
    """
    listing = root / "annotations" / f"instances_{SPLIT}.json"
    if listing.exists():
        return
    photos = root / SPLIT
    photos.mkdir(parents=True, exist_ok=True)
    listing.parent.mkdir(exist_ok=True)
    g = np.random.default_rng(0)
    pictures = [_draw_photo(g, size_hw) for _ in range(min(_DIFFERENT, images))]
    entries: list[dict[str, Any]] = []
    for image_id in range(1, images + 1):
        (photos / f"{image_id:012}.jpg").write_bytes(pictures[image_id % len(pictures)])
        for _ in range(objects):
            entries.append(_draw_annotation(g, size_hw, len(entries) + 1, image_id))
    height, width = size_hw
    content = {
        "images": [
            {"id": n, "file_name": f"{n:012}.jpg", "height": height, "width": width}
            for n in range(1, images + 1)
        ],
        "annotations": entries,
        "categories": [{"id": n, "name": f"kind {n}"} for n in range(1, _CATEGORIES + 1)],
    }
    listing.write_text(json.dumps(content))


def _draw_photo(g: np.random.Generator, size_hw: tuple[int, int]) -> bytes:
    """Draw soft blobs with grain, and encode them as JPEG."""
    height, width = size_hw
    coarse = g.integers(0, 255, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    soft = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    grain = g.normal(0, 8, (height, width, 1))
    pixels = (soft + grain).clip(0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1])


def _draw_annotation(
    g: np.random.Generator, size_hw: tuple[int, int], annotation_id: int, image_id: int
) -> dict[str, Any]:
    height, width = size_hw
    extent = np.array([width, height])
    radius = extent * g.uniform(0.06, 0.2, 2)
    center = radius + g.uniform(0, 1, 2) * (extent - 2 * radius)
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    outline = center + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    corner, far = outline.min(axis=0), outline.max(axis=0)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": int(g.integers(1, _CATEGORIES + 1)),
        "segmentation": [np.round(outline, 2).flatten().tolist()],
        "bbox": np.round([*corner, *(far - corner)], 2).tolist(),
        "area": round(float(np.pi * radius.prod()), 2),
        "iscrowd": 0,
    }
