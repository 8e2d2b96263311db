"""Every reader of files and requests from outside: valid samples, how to damage them, how to read.

`read` returns whether an input was accepted: False if its problems were counted. It raises one of
`refusals` if the reader refuses the input. Everything else is a finding.
"""

import asyncio
import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fastapi import Request
from PIL import Image
from pycocotools import mask as mask_api
from safetensors.torch import save as save_safetensors
from torch import nn

from bsm.checkpoints.weights import copy_state, read_weights
from pipeline.data import dataset_files
from pipeline.data.audit import audit
from pipeline.data.class_list import read_class_list
from pipeline.data.dataset_files import FileContent
from pipeline.data.ingest_config import LvisIngest
from pipeline.data.manifest import Manifest, read_manifest, write_manifest
from pipeline.data.photo import PhotoError, check_image, decode_photo
from pipeline.data.problems import ProblemCounts, encode_rejects, format_problems
from pipeline.data.read_rows import make_plan, read_item, train_columns
from pipeline.data.schema import get_schema
from pipeline.data.shards import ShardSettings, make_shard, pack
from pipeline.data.source_index import AnnotationRules, File, LabelRules, SourceImage
from pipeline.data.sources.coco import read_annotations
from pipeline.data.sources.lvis import list_lvis
from pipeline.data.validate_cityscapes import validate_frame
from pipeline.data.validate_image import validate_image
from pipeline.data.validate_label_map import validate_label_map
from pipeline.errors import PipelineError
from pipeline.evaluation.cityscapes_files import evaluate_cityscapes
from pipeline.evaluation.coco_files import check_files, read_json
from pipeline.evaluation.split_reader import truth_from_shards
from pipeline.recipe import Recipe, from_json, to_json
from pipeline.refine.mask_files import MaskFile
from pipeline.refine.photo_finder import PhotoFinder
from pipeline.registry.provenance import EvaluationRecord, Origin, TrainingData
from pipeline.server.options import ServeOptions
from pipeline.server.predict_request import decode, read_raw_request
from pipeline.serving.artifacts import categories_from_json
from pipeline.serving.exported import info_from_json
from pipeline.training import checkpoint
from tests.fuzz.mutate import (
    Mutator,
    mutate_bytes,
    mutate_json,
    mutate_png,
    mutate_safetensors,
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


NAMES = (
    *("coco", "lvis", "results", "truth", "mask-file", "photo", "label-png", "polygons"),
    *("submission", "class-list", "archive", "safetensors", "torch-file", "pickle", "checkpoint"),
    *("checkpoint-info", "recipe", "categories", "export-info", "record", "manifest", "shard"),
    *("form", "json-request"),
)


def make_readers(folder: Path) -> dict[str, Callable[[], Reader]]:
    """Return the readers by name, each made when it is called.

    Args:
        folder: for the files that they read.
    """
    makers = {name: globals()[f"_{name.replace('-', '_')}"] for name in NAMES}
    return {name: partial(make, folder) for name, make in makers.items()}


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


def _make_weights_reader(file: Path, samples: list[bytes], mutate: Mutator) -> Reader:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        copy_state(model, read_weights(file), source=str(file))
        return True

    return Reader(samples, mutate, read, (ValueError,))


def _make_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()
    return {key: value.contiguous() for key, value in state.items()}


def _safetensors(folder: Path) -> Reader:
    sample = save_safetensors(_make_state(), metadata={"format": "pt"})
    return _make_weights_reader(folder / "w.safetensors", [sample], mutate_safetensors)


def _save_torch(content: object, *, new: bool = True) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=new)
    return out.getvalue()


def _torch_file(folder: Path) -> Reader:
    state = _make_state()
    samples = [_save_torch(state), _save_torch({"model": state}), _save_torch(state, new=False)]

    def mutate(data: bytes, random: Random) -> bytes:
        return (mutate_zip if data.startswith(b"PK") else mutate_bytes)(data, random)

    return _make_weights_reader(folder / "w.pth", samples, mutate)


def _pickle(folder: Path) -> Reader:
    arrays = {key: value.numpy() for key, value in _make_state().items()}
    samples = [
        pickle.dumps(content, protocol=protocol)
        for content in (arrays, {"model": arrays, "__author__": "x"})
        for protocol in (2, 4, 5)
    ]
    return _make_weights_reader(folder / "w.pkl", samples, mutate_bytes)


def _save_checkpoint(folder: Path) -> checkpoint.CheckpointRef:
    model = nn.Linear(2, 2)
    return checkpoint.save(
        str(folder),
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        step=3,
        epoch=0,
        identity=checkpoint.Identity(
            recipe=Recipe(name="x"), categories=((7, 0, "disk"),), data_fingerprint="f"
        ),
    )


def _checkpoint(folder: Path) -> Reader:
    ref = _save_checkpoint(folder / "run")
    file, info = Path(ref.uri) / "checkpoint.pt", Path(ref.uri) / "checkpoint.json"
    sample, record = file.read_bytes(), json.loads(info.read_text())

    def read(data: bytes) -> bool:
        # As whoever wrote it for us would: with a size and no checksum.
        plain = {k: v for k, v in record.items() if "sha256" not in k} | {"bytes": len(data)}
        info.write_text(json.dumps(plain))
        file.write_bytes(data)
        checkpoint.load(ref)
        return True

    return Reader([sample], mutate_zip, read)


def _checkpoint_info(folder: Path) -> Reader:
    ref = _save_checkpoint(folder / "run-2")
    info = Path(ref.uri) / "checkpoint.json"
    plain = json.loads(info.read_text())
    del plain["manifest_sha256"]

    def read(data: bytes) -> bool:
        info.write_bytes(data)
        found = checkpoint.find_latest(str(folder / "run-2"), print_line=lambda _: None)
        checkpoint.load(ref)
        return found is not None

    return Reader([info.read_bytes(), _to_json(plain)], mutate_json, read)


def _recipe(_: Path) -> Reader:
    def read(data: bytes) -> bool:
        to_json(from_json(data))
        return True

    return Reader([to_json(Recipe(name="x")).encode()], mutate_json, read)


def _categories(_: Path) -> Reader:
    rows = [{"category_id": 7, "category_index": 0, "name": "disk", "frequency": ""}]

    def read(data: bytes) -> bool:
        return bool(categories_from_json(data.decode("latin-1")))

    return Reader([_to_json(rows)], mutate_json, read)


def _export_info(_: Path) -> Reader:
    info = {
        "format_version": 1,
        "model": "models:/x/1",
        "task": "instance",
        "pad_multiple": 32,
        "categories": [{"category_id": 7, "category_index": 0, "name": "disk"}],
        "pixel_mean": [1.0, 2.0, 3.0],
        "pixel_std": [1.0, 1.0, 1.0],
        "size_hw": None,
        "short_edge_px": 800,
        "long_edge_px": 1333,
        "fixed_hw": [64, 64],
        "detections": 100,
    }

    def read(data: bytes) -> bool:
        return bool(info_from_json(data.decode("latin-1")))

    return Reader([_to_json(info)], mutate_json, read)


def _record(_: Path) -> Reader:
    """The records of a registered version."""
    environment = {"python": "3", "system": "L", "packages": {"torch": "2"}, "git_commit": ""}
    samples = {
        EvaluationRecord: {
            "evaluated_on": "f, 3 images",
            "metrics": {"mask_ap": 0.5, "box_ap": None},
            "per_category": {"disk": {"mask_ap": 0.5}},
        },
        TrainingData: {
            "fingerprint": "f",
            "images": 3,
            "annotations": 4,
            "source": "coco",
            "rejects": {},
            "category_images": {"disk": 3},
        },
        Origin: {
            "run_name": "x",
            "run_id": "1",
            "started_from": "",
            "weights_bytes": 5,
            "environment": environment,
        },
    }

    def read(data: bytes) -> bool:
        kind = next((k for k, v in samples.items() if next(iter(v)).encode() in data), Origin)
        return bool(kind.from_json(data))

    return Reader([_to_json(each) for each in samples.values()], mutate_json, read)


def write_shards(folder: Path) -> tuple[Path, Manifest]:
    photos, out = folder / "photos", folder / "shards"
    photos.mkdir(parents=True, exist_ok=True)
    coco = draw_coco()
    for image in coco["images"]:
        (photos / image["file_name"]).write_bytes(encode_photo(".png"))
        image["annotations"] = [e for e in coco["annotations"] if e["image_id"] == image["id"]]
    settings = ShardSettings(
        rules=AnnotationRules(category_index={3: 0, 7: 1}),
        mounts={"images": str(photos)},
        num_categories=2,
        out=str(out),
        on_bad="drop",
    )
    images = [SourceImage(e, File("images", e["file_name"])) for e in coco["images"]]
    report = make_shard("0.parquet", pack(images), settings)
    manifest = Manifest(
        categories=categories_from_json(
            '[{"category_id": 3, "category_index": 0, "name": "disk"},'
            '{"category_id": 7, "category_index": 1, "name": "square"}]'
        ),
        shards=(report.info,),
        images=report.info.rows,
        annotations=report.info.annotations,
        fingerprint="f",
    )
    write_manifest(str(out), manifest)
    return out, manifest


def _read_shards(folder: Path) -> None:
    """Audit shards, then read them as training and evaluation do, whatever the audit says."""
    manifest = read_manifest(str(folder))
    files = tuple(each.file for each in manifest.shards)
    plan = make_plan(str(folder), manifest, seed=0, global_batch=2, repeat_threshold=0.1)
    items = plan.items(0, 1, rows_per_item=4)
    for item in items:
        read_item(item, split_uri=str(folder), files=files, columns=train_columns("instance"))
    truth_from_shards(str(folder))


def _manifest(folder: Path) -> Reader:
    out, _ = write_shards(folder / "manifest")
    file = out / "dataset.json"

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        audit(str(out))
        _read_shards(out)
        return True

    return Reader([file.read_bytes()], mutate_json, read)


def _shard(folder: Path) -> Reader:
    out, manifest = write_shards(folder / "shard")
    file = out / "0.parquet"
    table = pq.read_table(file)

    def mutate(data: bytes, random: Random) -> bytes:
        """Damage the file, or write its columns with a damaged value, type or name."""
        if random.random() < 0.6:
            return mutate_bytes(data, random)
        return _mutate_table(table, random)

    def read(data: bytes) -> bool:
        file.write_bytes(data)
        write_manifest(str(out), _fit(manifest, len(data)))
        try:
            audit(str(out), deep=True)
        except PipelineError:
            _read_shards(out)
            raise
        _read_shards(out)
        return True

    return Reader([file.read_bytes()], mutate, read)


def _fit(manifest: Manifest, size_bytes: int) -> Manifest:
    (shard,) = manifest.shards
    return replace(manifest, shards=(replace(shard, size_bytes=size_bytes),))


def _mutate_table(table: pa.Table, random: Random) -> bytes:
    """Write a table with another value, type, name or number of columns, and the same footer."""
    at = random.randrange(table.num_columns)
    name, values = table.column_names[at], table.column(at).to_pylist()
    match random.randrange(4):
        case 0:
            table = table.drop_columns([name])
        case 1:
            names = [n + ("x" if n == name else "") for n in table.column_names]
            table = table.rename_columns(names)
        case 2:
            table = table.set_column(at, name, pa.array([random.choice((None, 1))] * len(table)))
        case 3:
            changed = [_damage(value, random) for value in values]
            with suppress(pa.ArrowException, OverflowError):
                column = pa.array(changed, table.schema.field(at).type)
                table = table.set_column(at, table.schema.field(at), column)
    out = pa.BufferOutputStream()
    pq.write_table(table, out)
    return out.getvalue().to_pybytes()


def _damage(value: object, random: Random) -> object:  # noqa: PLR0911
    match value:
        case bytes():
            return mutate_bytes(value, random)
        case str():
            return random.choice(("", "../x", "a\0b", "x" * 5000))
        case bool():
            return not value
        case int() | float():
            return random.choice((0, -1, 2**31 - 1, 1e6, value + 1))
        case list() if value and random.random() < 0.7:
            at = random.randrange(len(value))
            return [*value[:at], _damage(value[at], random), *value[at + 1 :]]
        case list():
            return random.choice(([], value * 2, value[1:]))
    return value


_BOUNDARY = b"ab12"


def _ask(body: bytes, kind: str, chunk: int) -> bool:
    """Send a body to the server's reader in chunks, and decode its photo."""
    options = ServeOptions(max_bytes=20_000, max_pixels=_MAX_PIXELS)
    parts = [body[at : at + chunk] for at in range(0, len(body), chunk)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, start=1)
    ]

    async def receive() -> dict:
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}
    raw = asyncio.run(read_raw_request(Request(scope, receive), options))
    decode(raw.photo, options)
    return True


def _form(_: Path) -> Reader:
    photo = encode_photo(".png")
    text = b'Content-Disposition: form-data; name="format"\r\n\r\nrle'
    file = b'Content-Disposition: form-data; name="photo"; filename="x"\r\n'
    file += b"Content-Type: image/png\r\n\r\n" + photo
    start = b"--" + _BOUNDARY + b"\r\n"
    body = start + text + b"\r\n" + start + file + b"\r\n--" + _BOUNDARY + b"--\r\n"
    kind = f"multipart/form-data; boundary={_BOUNDARY.decode()}".encode()

    def read(data: bytes) -> bool:
        first, _, rest = data.partition(b"\n")
        return _ask(rest, first.decode("latin-1"), chunk=1 + len(data) % 997)

    return Reader([kind + b"\n" + body, kind + b"; charset=latin-1\n" + body], mutate_form, read)


def mutate_form(data: bytes, random: Random) -> bytes:
    """Damage the content type or the body, more often before the photo."""
    at = data.index(b"\x89PNG")
    if random.random() < 0.7:
        return mutate_bytes(data[:at], random) + data[at:]
    return mutate_bytes(data, random)


def _json_request(_: Path) -> Reader:
    text = base64.b64encode(encode_photo(".jpg")).decode()
    fields = {"photo": text, "score_threshold": 0.5, "format": "rle", "model": ""}

    def read(data: bytes) -> bool:
        return _ask(data, "application/json", chunk=500)

    return Reader([_to_json(fields)], mutate_json, read)
