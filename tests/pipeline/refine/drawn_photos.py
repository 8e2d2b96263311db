"""Photos of bright disks, coarse masks of them, and a refiner that finds the bright pixels."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_api
from torch import nn

from bsm.build import build_model
from bsm.configs.refine import RefinerConfig
from bsm.configs.shared import BackboneConfig
from bsm.refine.refine import Refined
from bsm.refine.refiner import Refiner

SIZE_HW = (96, 128)

TINY = RefinerConfig(
    backbone=BackboneConfig(name="resnet18", norm="group", freeze_at=0),
    widths=(8, 8, 8, 8, 8, 8),
    train_px=64,
    crop_px=(64,),
)


def make_tiny_refiner() -> Refiner:
    """Build a refiner with random weights, whose last layer changes masks."""
    torch.manual_seed(0)
    model = build_model(TINY)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def refine_to_bright_pixels(_model, image, masks) -> Refined:
    """Refine masks to the bright pixels within 9 px of them: with these photos, to the truth."""
    near = nn.functional.max_pool2d(masks.float()[:, None], 19, stride=1, padding=9)[:, 0] > 0
    return Refined(near & (image.float().mean(0) > 127), torch.full((len(masks),), 0.75))


def draw_disk(center: tuple[int, int], radius: int) -> np.ndarray:
    mask = np.zeros(SIZE_HW, np.uint8)
    return cv2.circle(mask, center, radius, 1, -1)


def to_square(mask: np.ndarray) -> list[float]:
    """Return the box of a mask as a polygon: the coarsest annotation."""
    x, y, w, h = cv2.boundingRect(mask)
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def to_rle(mask: np.ndarray) -> dict:
    packed = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": packed["counts"].decode()}


def write_photos(folder: Path, *, count: int = 3) -> dict:
    """Write photos with two disks each, and return their truth as a COCO annotation file."""
    (folder / "photos").mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        photo = np.full((*SIZE_HW, 3), 40, np.uint8)
        name = f"{10 + index:012d}.png"
        images.append({"id": 10 + index, "file_name": name, "height": 96, "width": 128})
        for number, (center, radius) in enumerate((((32, 40), 16 + index), ((92, 52), 22))):
            mask = draw_disk(center, radius)
            photo[mask > 0] = 220
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": 10 + index,
                    "category_id": 1 + number,
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": list(cv2.boundingRect(mask)),
                    "segmentation": to_rle(mask),
                }
            )
        Image.fromarray(photo).save(folder / "photos" / name)
    categories = [{"id": 1, "name": "small"}, {"id": 2, "name": "large"}]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(truth))
    return truth


def make_coarse_rows(truth: dict) -> list[dict]:
    """Return the truth's boxes as rows of a results file, in polygons and in both forms of RLE."""
    rows = []
    for index, each in enumerate(truth["annotations"]):
        polygon = to_square(np.asarray(mask_api.decode(each["segmentation"])))
        packed = mask_api.merge(mask_api.frPyObjects([polygon], *SIZE_HW))
        dense = mask_api.decode(packed).T.ravel()
        changes = np.flatnonzero(np.diff(dense)) + 1
        runs = np.diff([0, *changes.tolist(), dense.size]).tolist()
        forms = (
            [polygon],
            to_rle(mask_api.decode(packed)),
            {"size": list(SIZE_HW), "counts": runs},
        )
        rows.append(
            {
                "segmentation": forms[index % 3],
                "image_id": each["image_id"],
                "category_id": each["category_id"],
                "score": 0.5 + index / 100,
                "bbox": each["bbox"],
                "track": {"id": index},
            }
        )
    return rows
