"""Draw the inputs of benchmarks: masks of detections, outlines, annotation files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_api
from torch import Tensor

HEIGHT, WIDTH = 480, 640
CATEGORIES = 80
DETECTIONS_PER_IMAGE = 100
TRUTHS_PER_IMAGE = 7.36
"""As in COCO val2017: 36,781 on 5,000 images."""
_OUTLINE_POINTS = 24


def draw_detections(count: int, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Draw masks of blobs (count, 28, 28), and their boxes (count, 4) inside an image.

    Sides of boxes are 1/16 to all of those of the image, log-uniform.
    """
    generator = torch.Generator().manual_seed(0)
    sides = 16 ** -torch.rand(count, 2, generator=generator)
    corners = torch.rand(count, 2, generator=generator) * (1 - sides)
    boxes = torch.cat([corners, corners + sides], dim=1) * torch.tensor(size_hw[::-1]).repeat(2)
    at = (torch.arange(28) + 0.5) / 28 - 0.5
    angle, radius = torch.atan2(at[:, None], at), torch.hypot(at[:, None], at)
    phase = 2 * torch.pi * torch.rand(count, 2, 1, 1, generator=generator)
    outline = 0.38 + 0.06 * torch.sin(3 * angle + phase[:, 0])
    outline = outline + 0.04 * torch.sin(5 * angle + phase[:, 1])
    return torch.sigmoid(25 * (outline - radius)), boxes


def draw_coco_files(folder: Path, *, images: int) -> None:
    """Write truth.json and found.json: blobs, two imprecise detections of each, false positives.

    Files that are there already are kept: each number of images has a folder of its own.
    """
    if (folder / "found.json").exists():
        return
    g = np.random.default_rng(0)
    truths = round(TRUTHS_PER_IMAGE * images)
    outlines = [_draw_outline(g) for _ in range(truths)]
    kinds = g.integers(1, CATEGORIES + 1, truths).tolist()
    image_of = g.integers(1, images + 1, truths).tolist()
    annotations = [
        _make_entry(outline, image_id, kind) | {"id": number, "iscrowd": 0}
        for number, (outline, image_id, kind) in enumerate(
            zip(outlines, image_of, kinds, strict=True), start=1
        )
    ]
    found: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in range(1, images + 1)}
    for outline, image_id, kind in zip(outlines, image_of, kinds, strict=True):
        for _ in range(2):
            blur = float(g.uniform(0.01, 0.3))
            noise = blur * np.ptp(outline, axis=0) * g.normal(size=outline.shape) / 2
            score = float(np.clip(1 - 2 * blur + 0.2 * g.normal(), 0, 1))
            found[image_id].append(_make_entry(outline + noise, image_id, kind) | {"score": score})
    for image_id, entries in found.items():
        while len(entries) < DETECTIONS_PER_IMAGE:
            kind, score = int(g.integers(1, CATEGORIES + 1)), float(g.beta(1, 6))
            entries.append(_make_entry(_draw_outline(g), image_id, kind) | {"score": score})
    truth = {
        "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in found],
        "categories": [{"id": n, "name": f"kind {n}"} for n in range(1, CATEGORIES + 1)],
        "annotations": annotations,
    }
    rows = [entry for entries in found.values() for entry in entries[:DETECTIONS_PER_IMAGE]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(rows))


def _draw_outline(g: np.random.Generator) -> NDArray[np.float64]:
    """Draw a blob with a log-uniform radius of 4 to 160 px: (points, xy)."""
    radius = float(np.exp(g.uniform(np.log(4), np.log(160))))
    angles = np.linspace(0, 2 * np.pi, _OUTLINE_POINTS, endpoint=False)
    radii = radius * (
        1 + 0.3 * np.sin(angles * g.integers(1, 5)) + 0.1 * g.normal(size=len(angles))
    )
    around: NDArray[np.float64] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return around * radii[:, None] + g.uniform((0, 0), (WIDTH, HEIGHT))


def _make_entry(outline: NDArray[np.float64], image_id: int, kind: int) -> dict[str, Any]:
    inside = np.clip(outline, 0, (WIDTH, HEIGHT))
    (packed,) = mask_api.frPyObjects([inside.ravel().tolist()], HEIGHT, WIDTH)
    return {
        "image_id": image_id,
        "category_id": kind,
        "area": int(mask_api.area(packed)),
        "bbox": mask_api.toBbox(packed).tolist(),
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()},
    }
