"""A small valid COCO data set, and every way to break one, for tests and demonstrations.

python tests/pipeline/data/coco_samples.py COCO_FOLDER SPLIT OUT   breaks a copy of a real one
"""

import copy
import io
import json
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SPLIT = "tiny"
Doc = dict


def small_coco(root: Path, *, images: int = 40, seed: int = 0) -> Path:
    """Write a valid data set: polygons, run lengths of both kinds, crowds, empty images."""
    rng = np.random.default_rng(seed)
    folder = root / SPLIT
    folder.mkdir(parents=True)
    doc: Doc = {
        "info": {"description": "synthetic"},
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "blob"}, {"id": 3, "name": "star"}],
    }
    for number in range(images):
        width, height = (int(side) for side in rng.integers(40, 90, size=2))
        name = f"{number:06d}" + (".png" if number % 7 == 3 else ".jpg")
        gray = number % 5 == 4
        pixels = rng.integers(0, 255, size=(height, width) if gray else (height, width, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        # Not in the order of ids, so that ingest has to sort.
        doc["images"].insert(
            0, {"id": 1000 + number, "file_name": name, "height": height, "width": width}
        )
        for _ in range(0 if number % 6 == 5 else int(rng.integers(1, 5))):
            doc["annotations"].append(
                _annotation(rng, 1000 + number, width, height, len(doc["annotations"]) + 1)
            )
    doc["annotations"].reverse()
    save(root, doc)
    return root


def _annotation(rng: np.random.Generator, image_id: int, width: int, height: int, number: int):
    angle = np.sort(rng.uniform(0, 2 * np.pi, size=9))
    radius = rng.uniform(0.6, 1.0, size=9) * rng.uniform(6, 18)
    x = np.clip(rng.uniform(12, width - 12) + radius * np.cos(angle), 0, width)
    y = np.clip(rng.uniform(12, height - 12) + radius * np.sin(angle), 0, height)
    polygon = np.stack([x, y], axis=1).round(2).ravel().tolist()
    packed = coco_mask.merge(coco_mask.frPyObjects([polygon], height, width))
    segmentation: object = [polygon]
    if number % 4 == 1:
        segmentation = {"size": [height, width], "counts": packed["counts"].decode()}
    if number % 4 == 2:
        segmentation = {"size": [height, width], "counts": _runs(coco_mask.decode(packed))}
    return {
        "id": number,
        "image_id": image_id,
        "category_id": (7, 3)[number % 2],
        "bbox": [float(value) for value in coco_mask.toBbox(packed)],
        "area": float(coco_mask.area(packed)),
        "iscrowd": int(number % 4 == 2),
        "segmentation": segmentation,
    }


def _runs(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    return [0, *runs] if flat[0] else runs


def load(root: Path, split: str = SPLIT) -> Doc:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def save(root: Path, doc: Doc, split: str = SPLIT) -> None:
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(doc))


def bomb_png(width: int, height: int) -> bytes:
    """Encode a PNG of a few bytes whose header declares many pixels."""

    def part(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", data) + part(b"IEND", b"")


class Breaker:
    """Break one data set in many ways, each on different images and annotations."""

    def __init__(self, root: Path, split: str = SPLIT) -> None:
        self.root, self.split = root, split
        self.doc = load(root, split)
        by_image: dict[int, list[dict]] = {}
        for entry in self.doc["annotations"]:
            by_image.setdefault(entry["image_id"], []).append(entry)
        images = [image for image in self.doc["images"] if image["id"] in by_image]
        self._images = iter(sorted(images, key=lambda image: image["id"]))
        self._by_image = by_image

    def image(self) -> dict:
        """Return the next untouched image."""
        return next(self._images)

    def annotation(self, *, polygon: bool = False) -> dict:
        """Return an annotation of the next untouched image, with polygons if requested."""
        for image in self._images:
            for entry in self._by_image[image["id"]]:
                if not polygon or isinstance(entry["segmentation"], list):
                    return entry
        raise LookupError("no annotation left")

    def file(self, image: dict) -> Path:
        return self.root / self.split / image["file_name"]

    def owner(self, annotation: dict) -> dict:
        return next(each for each in self.doc["images"] if each["id"] == annotation["image_id"])

    def apply(self, kind: str) -> None:
        """Apply one kind of damage."""
        DAMAGE[kind](self)

    def save(self) -> None:
        save(self.root, self.doc, self.split)


def _image_entry(b: Breaker) -> None:
    del b.image()["width"]


def _annotation_entry(b: Breaker) -> None:
    b.annotation()["iscrowd"] = "no"


def _duplicate_image_id(b: Breaker) -> None:
    b.doc["images"].append({**b.image(), "file_name": "other.jpg"})


def _file_twice(b: Breaker) -> None:
    b.doc["images"].append({**b.image(), "id": 987654322})


def _duplicate_annotation_id(b: Breaker) -> None:
    b.doc["annotations"].append(copy.deepcopy(b.annotation()))


def _unknown_image(b: Breaker) -> None:
    b.annotation()["image_id"] = 987654321


def _unknown_category(b: Breaker) -> None:
    b.annotation()["category_id"] = 12345


def _image_missing(b: Breaker) -> None:
    b.file(b.image()).unlink()


def _image_unreadable(b: Breaker) -> None:
    path = b.file(b.image())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _image_format(b: Breaker) -> None:
    image = b.image()
    out = io.BytesIO()
    Image.new("RGB", (image["width"], image["height"])).save(out, format="GIF")
    b.file(image).write_bytes(out.getvalue())


def _image_too_large(b: Breaker) -> None:
    b.file(b.image()).write_bytes(bomb_png(12_000, 10_000))


def _image_size(b: Breaker) -> None:
    # A smaller height would also put boxes outside.
    b.image()["height"] += 10


def _not_finite(b: Breaker) -> None:
    b.annotation()["bbox"][2] = float("nan")


def _polygon_short(b: Breaker) -> None:
    entry = b.annotation(polygon=True)
    entry["segmentation"].append([1.0, 2.0, 3.0, 4.0])


def _mask_format(b: Breaker) -> None:
    entry = b.annotation()
    image = b.owner(entry)
    entry["segmentation"] = {"size": [image["height"], image["width"]], "counts": [5, 10]}


def _mask_empty(b: Breaker) -> None:
    entry = b.annotation()
    image = b.owner(entry)
    pixels = image["height"] * image["width"]
    entry["segmentation"] = {"size": [image["height"], image["width"]], "counts": [pixels]}


def _box_empty(b: Breaker) -> None:
    b.annotation()["bbox"][3] = 0


def _box_outside(b: Breaker) -> None:
    entry = b.annotation()
    entry["bbox"][2] = b.owner(entry)["width"] + 50.0


def _box_disagrees(b: Breaker) -> None:
    entry = b.annotation()
    image = b.owner(entry)
    x, y, w, h = entry["bbox"]
    far_x = 0.0 if x + w / 2 > image["width"] / 2 else image["width"] - 5.0
    far_y = 0.0 if y + h / 2 > image["height"] / 2 else image["height"] - 5.0
    entry["bbox"] = [far_x, far_y, 5.0, 5.0]


def _path_outside_root(b: Breaker) -> None:
    b.image()["file_name"] = "../../secret.jpg"


def _category_entry(b: Breaker) -> None:
    b.doc["categories"].append({**b.doc["categories"][0], "name": "another"})


DAMAGE: dict[str, Callable[[Breaker], None]] = {
    "image_entry": _image_entry,
    "annotation_entry": _annotation_entry,
    "duplicate_image_id": _duplicate_image_id,
    "file_twice": _file_twice,
    "duplicate_annotation_id": _duplicate_annotation_id,
    "unknown_image": _unknown_image,
    "unknown_category": _unknown_category,
    "image_missing": _image_missing,
    "image_unreadable": _image_unreadable,
    "image_format": _image_format,
    "image_too_large": _image_too_large,
    "image_size": _image_size,
    "not_finite": _not_finite,
    "polygon_short": _polygon_short,
    "mask_format": _mask_format,
    "mask_empty": _mask_empty,
    "box_empty": _box_empty,
    "box_outside": _box_outside,
    "box_disagrees": _box_disagrees,
}
"""Damage that can be dropped, by the kind of problem that must be found."""

ALWAYS_STOPS: dict[str, Callable[[Breaker], None]] = {
    "path_outside_root": _path_outside_root,
    "category_entry": _category_entry,
}

if __name__ == "__main__":
    source, split, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    shutil.copytree(source / split, out / split, copy_function=shutil.copyfile)
    (out / split).chmod(0o755)
    save(out, load(source, split), split)
    breaker = Breaker(out, split)
    for each in DAMAGE:
        breaker.apply(each)
    breaker.save()
