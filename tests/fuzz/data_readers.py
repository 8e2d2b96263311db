"""Readers of data sets, photos, masks and results, with their samples."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.data import dataset_files
from pipeline.data.class_list import read_class_list
from pipeline.data.dataset_files import FileContent
from pipeline.data.ingest_config import LvisIngest
from pipeline.data.photo import PhotoError, check_image, decode_photo
from pipeline.data.problems import ProblemCounts, encode_rejects, format_problems
from pipeline.data.schema import get_schema
from pipeline.data.source_index import LabelRules
from pipeline.data.sources.coco import read_annotations
from pipeline.data.sources.lvis import list_lvis
from pipeline.data.validate_cityscapes import validate_frame
from pipeline.data.validate_image import validate_image
from pipeline.data.validate_label_map import validate_label_map
from pipeline.errors import PipelineError
from pipeline.evaluation.cityscapes_files import evaluate_cityscapes
from pipeline.evaluation.coco_files import check_files, read_json
from pipeline.refine.mask_files import MaskFile
from pipeline.refine.photo_finder import PhotoFinder
from tests.fuzz.mutate import (
    Mutator,
    mutate_bytes,
    mutate_json,
    mutate_png,
    mutate_zip,
)

SIDE = 24
"""Of the samples; small ones are read, and broken, more often."""

_MAX_PIXELS = 4096


@dataclass(frozen=True)
class Reader:
    """A reader, with valid samples and ways to damage them."""

    samples: list[bytes]
    mutate: Mutator
    read: Callable[[bytes], bool]
    refusals: tuple[type[Exception], ...] = (PipelineError,)


def _to_json(value: object) -> bytes:
    return json.dumps(value).encode()


def draw_photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)


def encode_photo(ending: str) -> bytes:
    return bytes(cv2.imencode(ending, draw_photo())[1])


def draw_coco() -> dict:
    """Return a COCO file with the three formats of masks."""
    square = [4.0, 4.0, 16.5, 4.0, 16.0, 18.0, 4.0, 18.0]
    packed = mask_api.merge(mask_api.frPyObjects([square], SIDE, SIDE))
    flat = mask_api.decode(packed).T.ravel()
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    masks = [
        [square],
        {"size": [SIDE, SIDE], "counts": packed["counts"].decode()},
        {"size": [SIDE, SIDE], "counts": runs},
    ]
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE}
            for number in (1, 2)
        ],
        "annotations": [
            {
                "id": 10 + number,
                "image_id": 1 + number % 2,
                "category_id": 3,
                "bbox": [4.0, 4.0, 12.0, 14.0],
                "area": 170.0,
                "iscrowd": int(number == 2),
                "segmentation": mask,
            }
            for number, mask in enumerate(masks)
        ],
        "categories": [{"id": 3, "name": "disk"}, {"id": 7, "name": "square"}],
    }


def _coco(folder: Path) -> Reader:
    file, image = folder / "coco.json", FileContent(encode_photo(".png"))

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        coco = read_annotations(str(file))
        index = {each.category_id: each.category_index for each in coco.categories}
        problems = list(coco.problems)
        for entry in coco.images:
            result = validate_image(entry, image, index, max_pixels=_MAX_PIXELS, clip_boxes=True)
            problems += result.problems
            if result.row:
                pa.Table.from_pylist([result.row], get_schema("instance", federated=False))
        encode_rejects(problems)
        format_problems(ProblemCounts(problems))
        return all(each.severity == "notice" for each in problems)

    return Reader([_to_json(draw_coco())], mutate_json, read)


def _lvis(folder: Path) -> Reader:
    root = folder / "lvis"
    (root / "images").mkdir(parents=True, exist_ok=True)
    file = root / "lvis_v1_val.json"
    content = draw_coco()
    for each in content["images"]:
        each |= {"neg_category_ids": [7], "not_exhaustive_category_ids": [3]}
        each["coco_url"] = f"http://images.cocodataset.org/val2017/{each['file_name']}"
    for each, synset in zip(content["categories"], ("person.n.01", "car.n.01"), strict=True):
        each |= {"synset": synset, "frequency": "r"}
    config = [
        LvisIngest(root=str(root), split="val", out="o", only_coco_categories=each)
        for each in (False, True)
    ]

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        problems = [each for one in config for each in list_lvis(one).problems]
        encode_rejects(problems)
        return not problems

    return Reader([_to_json(content)], mutate_json, read)


def draw_results() -> list[dict]:
    return [
        {key: each[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        | {"score": 0.5}
        for each in draw_coco()["annotations"]
    ]


def _results(folder: Path) -> Reader:
    file, truth = folder / "results.json", draw_coco()

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        check_files(truth, read_json(str(file)), masks=True, boxes=True)
        return True

    return Reader([_to_json(draw_results())], mutate_json, read)


def _truth(folder: Path) -> Reader:
    file, results = folder / "truth.json", draw_results()

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        top = read_json(str(file))
        check_files(top, results, masks=True, boxes=False)
        check_files(top, results, masks=False, boxes=True)
        return True

    return Reader([_to_json(draw_coco())], mutate_json, read)


def _mask_file(folder: Path) -> Reader:
    photos, file = folder / "photos", folder / "masks.json"
    photos.mkdir(exist_ok=True)
    for number in (1, 2):
        (photos / f"{number}.png").write_bytes(encode_photo(".png"))
    finder = PhotoFinder(str(photos))

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        MaskFile(str(file), finder, out_uri="", are_annotations=b'"annotations"' in data)
        return True

    predicted = {"model": "m", "detections": draw_results()}
    samples = [_to_json(each) for each in (draw_results(), draw_coco(), predicted)]
    return Reader(samples, mutate_json, read)


def _photo(_: Path) -> Reader:
    pixels = draw_photo()
    samples = [encode_photo(each) for each in (".jpg", ".png", ".webp", ".bmp", ".tiff")]
    for picture, kind, options in (
        (Image.fromarray(pixels).convert("P"), "PNG", {}),
        (Image.fromarray(pixels).convert("RGBA"), "PNG", {}),
        (Image.fromarray(pixels).convert("CMYK"), "JPEG", {}),
        (Image.fromarray(pixels), "JPEG", {"exif": _make_exif(), "progressive": True}),
        (Image.fromarray(pixels), "TIFF", {"compression": "tiff_deflate"}),
        (Image.fromarray(pixels), "TIFF", {"compression": "jpeg"}),
    ):
        out = io.BytesIO()
        picture.save(out, kind, **options)
        samples.append(out.getvalue())

    def mutate(data: bytes, random: Random) -> bytes:
        return (mutate_png if data.startswith(b"\x89PNG") else mutate_bytes)(data, random)

    def read(data: bytes) -> bool:
        check_image(data, (SIDE, SIDE), max_pixels=_MAX_PIXELS)
        height, width, _ = decode_photo(data, max_pixels=_MAX_PIXELS).pixels.shape
        if height * width > _MAX_PIXELS:
            raise AssertionError(f"{width} x {height} pixels were decoded")
        return True

    return Reader(samples, mutate, read, (PhotoError,))


def _make_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x"
    return exif


def _encode(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _label_png(_: Path) -> Reader:
    values = np.random.default_rng(1).integers(0, 4, (SIDE, SIDE), dtype=np.uint8)
    palette = Image.fromarray(values, "P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 50, 50, 50, 7, 7, 7])
    rules, image = LabelRules.of({0: 0, 1: 1, 2: 2, 3: 255}), FileContent(encode_photo(".png"))
    entry = {"id": 1, "file_name": "1.png", "label_name": "1.png"}
    ids = np.where(values > 1, 26_000, 0).astype(np.uint16)

    def read(data: bytes) -> bool:
        content, fits = FileContent(data), False
        limit = {"max_pixels": _MAX_PIXELS}
        for result in (
            validate_label_map(entry, image, content, rules, take_palette=True, **limit),
            validate_frame(entry, image, content, **limit),
        ):
            row = result.row
            if row and (row["height"], row["width"]) != (SIDE, SIDE):
                raise AssertionError("the row's size is not its image's")
            fits = fits or row is not None
        return fits

    samples = [_encode(each) for each in (Image.fromarray(values), palette, Image.fromarray(ids))]
    return Reader(samples, mutate_png, read)


def _polygons(_: Path) -> Reader:
    image = FileContent(encode_photo(".png"))
    entry = {"id": 1, "file_name": "1.png", "label_name": "1.json"}
    objects = [
        {"label": label, "polygon": [[1, 1], [20, 2], [18.5, 20]]}
        for label in ("road", "car", "cargroup", "car")
    ]
    top = {"imgHeight": SIDE, "imgWidth": SIDE, "objects": objects}

    def read(data: bytes) -> bool:
        result = validate_frame(entry, image, FileContent(data), max_pixels=_MAX_PIXELS)
        return result.row is not None

    return Reader([_to_json(top)], mutate_json, read)


def _submission(folder: Path) -> Reader:
    truth, found = folder / "truth", folder / "found"
    frame = "ulm_000000_000019"
    for each in (truth, found):
        each.mkdir(exist_ok=True)
    ids = np.zeros((SIDE, SIDE), np.uint16)
    ids[2:20, 2:20] = 26_000
    Image.fromarray(ids).save(truth / f"{frame}_gtFine_instanceIds.png")
    Image.fromarray((ids > 0).astype(np.uint8)).save(found / "a.png")
    file = found / f"{frame}.txt"

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        evaluate_cityscapes(str(truth), str(found))
        return True

    return Reader([b"a.png 26 0.5\n", b"./a.png 26 1e-3\n\n"], mutate_bytes, read)


def _class_list(folder: Path) -> Reader:
    file = folder / "classes.txt"

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        read_class_list(str(file))
        return True

    return Reader([b"road\ncar\nsky\n", b"0 road\n1: car\n254 sky\n"], mutate_bytes, read)


def _archive(folder: Path) -> Reader:
    file, out = folder / "data.zip", io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/a.json", "{}" * 50)
        archive.writestr("train/1.jpg", b"\xff\xd8" * 50)

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        is_there = dataset_files.find_folder(f"{file}!", "train") is not None
        dataset_files.read_file(f"{file}!/annotations/a.json")
        with dataset_files.FileReader() as reader:
            content = reader.read(f"{file}!/train", "1.jpg", max_bytes=1000)
        return is_there and content.data is not None

    return Reader([out.getvalue()], mutate_zip, read)
