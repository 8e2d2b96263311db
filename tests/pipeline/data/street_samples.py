"""Small data sets of drawn streets in the layouts of Cityscapes, BDD100K and custom label maps."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.data.cityscapes_classes import CLASSES

SIZE_HW = (48, 96)
LABEL_IDS = {each.name: each.label_id for each in CLASSES}
TRAIN_IDS = np.array([each.train_id for each in CLASSES if each.label_id >= 0], np.uint8)

CITIES = ("aachen", "bochum")


def frame_objects(number: int) -> list[dict]:
    """List the objects of a frame from back to front."""
    height, width = SIZE_HW
    rng = np.random.default_rng(number)

    def box(label: str, x0: int, y0: int, x1: int, y1: int) -> dict:
        return {"label": label, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}

    x = int(rng.integers(0, 20))
    return [
        box("road", 0, 20, width, height),
        box("sky", 0, 0, width, 19),
        box("car", 4 + x, 22, 24 + x, 34),
        box("car", 18 + x, 24, 40 + x, 40),
        box("persongroup", 60, 15, 75, 30),
        box("caravan", 78, 20, 90, 35),
        {**box("bus", 0, 0, 30, 30), "deleted": 1},
        box("license plate", 20 + x, 30, 24 + x, 32),
        box("pole", 50, 5, 52, 40),
        box("ego vehicle", 0, 44, width, height),
    ]


def draw_frame(objects: list[dict]) -> np.ndarray:
    """Draw instance ids by the rule of cityscapesScripts."""
    drawn = Image.new("I", SIZE_HW[::-1], 0)
    numbers: dict[str, int] = {}
    for each in objects:
        name = (
            each["label"].removesuffix("group") if each["label"] not in LABEL_IDS else each["label"]
        )
        value = LABEL_IDS[name]
        if each.get("deleted") or value < 0:
            continue
        if name == each["label"] and any(c.name == name and c.has_instances for c in CLASSES):
            numbers[name] = numbers.get(name, -1) + 1
            value = 1000 * value + numbers[name]
        ImageDraw.Draw(drawn).polygon([tuple(point) for point in each["polygon"]], fill=value)
    return np.asarray(drawn).astype(np.uint16)


def label_ids(instance_ids: np.ndarray) -> np.ndarray:
    return np.where(instance_ids >= 1000, instance_ids // 1000, instance_ids).astype(np.uint8)


def photo(number: int, size_hw: tuple[int, int] = SIZE_HW) -> Image.Image:
    rng = np.random.default_rng(1000 + number)
    return Image.fromarray(rng.integers(0, 255, (*size_hw, 3), dtype=np.uint8))


def cityscapes(root: Path, *, frames: int = 6, split: str = "train") -> Path:
    """Write photos, and all gtFine files of each frame."""
    for number in range(frames):
        city = CITIES[number % 2]
        name = f"{city}_{number:06d}_000019"
        photos, labels = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
        photos.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        photo(number).save(photos / f"{name}_leftImg8bit.png")
        objects = frame_objects(number)
        ids = draw_frame(objects)
        Image.fromarray(ids).save(labels / f"{name}_gtFine_instanceIds.png")
        Image.fromarray(label_ids(ids)).save(labels / f"{name}_gtFine_labelIds.png")
        polygons = {"imgHeight": SIZE_HW[0], "imgWidth": SIZE_HW[1], "objects": objects}
        (labels / f"{name}_gtFine_polygons.json").write_text(json.dumps(polygons))
        photo(number).save(labels / f"{name}_gtFine_color.png")
    return root


def bdd(root: Path, *, images: int = 5, split: str = "train", old: bool = False) -> Path:
    """Write images and masks of train ids, in the current or the old layout."""
    photos = root / ("seg/images" if old else "images/10k") / split
    masks = root / ("seg/labels" if old else "labels/sem_seg/masks") / split
    photos.mkdir(parents=True)
    masks.mkdir(parents=True)
    for number in range(images):
        photo(number).save(photos / f"{number:08x}.jpg")
        label = TRAIN_IDS[label_ids(draw_frame(frame_objects(number)))]
        Image.fromarray(label).save(masks / f"{number:08x}{'_train_id' if old else ''}.png")
    return root


def label_maps(root: Path, *, images: int = 4, split: str = "train") -> Path:
    """Write images and labels with 3 classes, and classes.txt."""
    (root / "images" / split).mkdir(parents=True)
    (root / "labels" / split).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\nhouse\ntree\n")
    for number in range(images):
        photo(number).save(root / "images" / split / f"p{number}.jpg")
        Image.fromarray(blocks(number)).save(root / "labels" / split / f"p{number}.png")
    return root


def blocks(number: int, *, classes: int = 3, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """Draw blocks of classes, with a stripe of void."""
    rng = np.random.default_rng(number)
    height, width = size_hw
    label = rng.integers(0, classes, (height // 8, width // 8), dtype=np.uint8)
    label = np.kron(label, np.ones((8, 8), np.uint8))
    label[5:7] = 255
    return label


def zip_folders(root: Path, archive: str, *folders: str, under: str = "") -> None:
    """Move folders of root into a zip in root, as in a download."""
    with zipfile.ZipFile(root / archive, "w") as out:
        out.writestr("README", "of the site")
        for folder in folders:
            for path in sorted((root / folder).rglob("*")):
                if path.is_file():
                    out.write(path, under + str(path.relative_to(root)))
                    path.unlink()
            for path in sorted((root / folder).rglob("*"), reverse=True):
                path.rmdir()
            (root / folder).rmdir()


def png(values: np.ndarray | Image.Image) -> bytes:
    out = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(out, format="PNG")
    return out.getvalue()


def gray_png(values: np.ndarray, bits: int) -> bytes:
    """Encode a gray PNG of 1, 2 or 4 bits, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + name + content + check

    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    places = (values[..., None] >> np.arange(bits)[::-1]) & 1
    lines = np.packbits(places.reshape(height, -1), axis=1)
    packed = zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
