"""The embedded data set: procedural shapes on textured backgrounds, in the COCO format.

It runs and tests every part of the pipeline without a download: wiggly, thin and occluding shapes,
empty images, polygons for whole shapes, and run lengths for shapes with a hole or partly covered.
No other module distinguishes it from COCO.

Every image is a function of (seed, split, image id) alone, so its bytes do not depend on the order
of generation or the machine.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.data.sources.shape_drawing import (
    SHAPES,
    Outline,
    Picture,
    draw_background,
    draw_fill,
    fill_outline,
)

VERSION = 1
"""Raise it when the same seed gives other images."""

SIZES_HW = ((128, 128), (96, 128), (128, 96))
EMPTY_SHARE = 0.06
"""Share of images without shapes."""
SMALLEST_PX, LARGEST_PX = 12.0, 40.0
"""Range of the log-uniform radius of a shape."""
MIN_VISIBLE_PX = 80
MIN_VISIBLE_SHARE = 0.55
"""A shape is skipped if it, or a shape that it covers, would be less visible than this."""
JPEG_QUALITY = 92

_log = logging.getLogger(__name__)


class ShapeImage(NamedTuple):
    """One image and its annotations without ids."""

    picture: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    annotations: list[dict[str, Any]]
    """COCO annotations: category_id, segmentation, bbox, area, iscrowd."""


def write_shapes(
    root: str | Path, *, train_images: int, val_images: int, seed: int = 0
) -> dict[str, Any]:
    """Write `root/{train,val}/*.jpg` and `root/annotations/instances_{train,val}.json`.

    A complete split that was made with the same arguments is kept.

    Returns:
        Counts of images and annotations, seconds, and the root.
    """
    begin = time.monotonic()
    counts = {
        split: _write_split(Path(root), split=split, count=count, seed=seed)
        for split, count in (("train", train_images), ("val", val_images))
    }
    return {
        "root": str(root),
        "images": train_images + val_images,
        "annotations": sum(counts.values()),
        "seconds": round(time.monotonic() - begin, 2),
    }


def draw_image(*, seed: int, split: str, image_id: int) -> ShapeImage:
    """Make one image; a pure function of its arguments."""
    rng = np.random.default_rng([VERSION, seed, *split.encode(), image_id])
    size_hw = SIZES_HW[rng.integers(len(SIZES_HW))]
    picture = draw_background(rng, size_hw=size_hw)
    count = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, 5))
    # Large shapes first, so that small ones are drawn on top and stay visible.
    radii = np.sort(np.exp(rng.uniform(math.log(SMALLEST_PX), math.log(LARGEST_PX), count)))[::-1]
    shapes: list[tuple[int, Outline, NDArray[np.bool_]]] = []
    visible: list[NDArray[np.bool_]] = []
    for radius_px in radii:
        index = int(rng.integers(len(SHAPES)))
        name, draw = list(SHAPES.items())[index]
        center = rng.uniform(0.1, 0.9, 2) * np.array([size_hw[1], size_hw[0]])
        outline = _round_points(draw(rng, center_xy=center, radius_px=float(radius_px)))
        mask = _rasterize(outline, size_hw=size_hw)
        after = [old & ~mask for old in visible]
        wholes = [old for _, _, old in shapes]
        if not all(map(_is_visible, [*after, mask], [*wholes, mask])):
            continue
        fill = draw_fill(rng, name=name, center_xy=center, size_hw=size_hw)
        alpha = fill_outline(outline, size_hw=size_hw)[..., None]
        picture = picture * (1 - alpha) + fill * alpha
        shapes.append((index + 1, outline, mask))
        visible = [*after, mask]
    annotations = [
        _make_annotation(category_id, outline, whole=whole, part=part)
        for (category_id, outline, whole), part in zip(shapes, visible, strict=True)
    ]
    return ShapeImage(_develop(rng, picture), annotations)


def _write_split(root: Path, *, split: str, count: int, seed: int) -> int:
    made_with = {"description": "shapes", "version": str(VERSION), "seed": seed, "images": count}
    path = root / "annotations" / f"instances_{split}.json"
    if path.exists():
        existing = json.loads(path.read_text())
        if existing["info"] == made_with:
            _log.info("shapes %s: kept %d images in %s", split, count, root / split)
            return len(existing["annotations"])
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        image = draw_image(seed=seed, split=split, image_id=image_id)
        file_name = f"{image_id:012d}.jpg"
        (folder / file_name).write_bytes(_encode_jpeg(image.picture))
        height, width, _ = image.picture.shape
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for annotation in image.annotations:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
        if image_id % 500 == 0:
            _log.info("shapes %s: %d of %d images", split, image_id, count)
    categories = [{"id": number, "name": name} for number, name in enumerate(SHAPES, start=1)]
    # Written last: its presence means that the split is complete.
    path.write_text(
        json.dumps(
            {
                "info": made_with,
                "licenses": [],
                "images": images,
                "annotations": annotations,
                "categories": categories,
            }
        )
    )
    return len(annotations)


def _is_visible(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> bool:
    visible_px = int(part.sum())
    return visible_px >= max(MIN_VISIBLE_PX, MIN_VISIBLE_SHARE * int(whole.sum()))


def _round_points(outline: Outline) -> Outline:
    """Round to two decimals, as in COCO, so that the file and the image have the same outline."""
    return Outline([p.round(2) for p in outline.parts], [p.round(2) for p in outline.holes])


def _is_inside(outline: Outline, *, size_hw: tuple[int, ...]) -> bool:
    points = np.concatenate(outline.parts)
    return bool((points >= 0).all() and (points <= size_hw[::-1]).all())


def _rasterize(outline: Outline, *, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = size_hw

    def fill(polygons: list[NDArray[np.float64]]) -> NDArray[np.bool_]:
        encoded = coco_mask.frPyObjects([p.ravel().tolist() for p in polygons], height, width)
        filled: NDArray[np.bool_] = coco_mask.decode(coco_mask.merge(encoded)).astype(np.bool_)
        return filled

    mask = fill(outline.parts)
    return mask & ~fill(outline.holes) if outline.holes else mask


def _make_annotation(
    category_id: int, outline: Outline, *, whole: NDArray[np.bool_], part: NDArray[np.bool_]
) -> dict[str, Any]:
    segmentation: Any
    # COCO's polygons never leave the image.
    if outline.holes or (whole != part).any() or not _is_inside(outline, size_hw=part.shape):
        segmentation = {"size": list(part.shape), "counts": _encode_counts(part)}
    else:
        segmentation = [points.ravel().tolist() for points in outline.parts]
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "category_id": category_id,
        "segmentation": segmentation,
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(part.sum()),
        "iscrowd": 0,
    }


def _encode_counts(mask: NDArray[np.bool_]) -> list[int]:
    """Encode COCO's uncompressed counts: column by column, starting with zeros."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    counts: list[int] = np.diff(bounds).tolist()
    return [0, *counts] if flat[0] else counts


def _develop(rng: np.random.Generator, picture: Picture) -> NDArray[np.uint8]:
    """Add light from one side, slight blur and grain, as a camera does."""
    height, width, _ = picture.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle)
    lit = picture * (1 + rng.uniform(0, 0.35) * slope)[..., None].astype(np.float32)
    soft = cv2.GaussianBlur(lit, (3, 3), float(rng.uniform(0.3, 0.6)))
    grain = rng.normal(0, 5, picture.shape).astype(np.float32)
    developed: NDArray[np.uint8] = np.clip(np.round(soft + grain), 0, 255).astype(np.uint8)
    return developed


def _encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return bytes(encoded)
