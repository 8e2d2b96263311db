"""A small LVIS data set: photos in train2017 and val2017, and lists of categories."""

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from tests.pipeline.data.street_samples import photo

CATEGORIES = [
    # LVIS's ids are alphabetical, COCO's are not; the first is not a COCO category.
    {"id": 1, "name": "aerosol_can", "synset": "aerosol.n.02", "frequency": "c"},
    {"id": 2, "name": "car_(automobile)", "synset": "car.n.01", "frequency": "f"},
    {"id": 3, "name": "cow", "synset": "beef.n.01", "frequency": "r"},
    {"id": 5, "name": "baby", "synset": "person.n.01", "frequency": "f"},
    {"id": 9, "name": "zebra", "synset": "zebra.n.01", "frequency": "c"},
]


def lvis(root: Path, *, images: int = 6, version: str = "v1") -> Path:
    """Write lvis_VERSION_val.json and its photos; every third photo is in train2017."""
    doc = {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": CATEGORIES}
    for number in range(images):
        part = "train2017" if number % 3 == 0 else "val2017"
        (root / part).mkdir(parents=True, exist_ok=True)
        name = f"{7000 + number:012d}.jpg"
        photo(number).save(root / part / name)
        rng = np.random.default_rng(number)
        entry = {
            "id": 7000 + number,
            "coco_url": f"http://images.cocodataset.org/{part}/{name}",
            "height": 48,
            "width": 96,
            "neg_category_ids": sorted(rng.choice([1, 9], size=number % 3, replace=False).tolist()),
            "not_exhaustive_category_ids": [2] if number % 2 else [],
        }
        if version == "v0.5":
            entry["file_name"] = f"COCO_val2014_{name}"
        doc["images"].append(entry)
        for count in range(number % 4):
            x, y = int(rng.integers(0, 60)), int(rng.integers(0, 20))
            polygon = [x, y, x + 20, y, x + 20, y + 15, x, y + 15]
            packed = coco_mask.merge(coco_mask.frPyObjects([polygon], 48, 96))
            doc["annotations"].append(
                {
                    "id": len(doc["annotations"]) + 1,
                    "image_id": 7000 + number,
                    "category_id": (2, 3, 5, 1)[(number + count) % 4],
                    "bbox": [float(each) for each in coco_mask.toBbox(packed)],
                    "area": float(coco_mask.area(packed)),
                    "segmentation": [polygon],
                }
            )
    save(root, doc, version=version)
    return root


def load(root: Path, version: str = "v1") -> dict:
    return json.loads((root / f"lvis_{version}_val.json").read_text())


def save(root: Path, doc: dict, version: str = "v1") -> None:
    (root / f"lvis_{version}_val.json").write_text(json.dumps(doc))
