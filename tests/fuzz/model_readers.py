"""Readers of weights, checkpoints, recipes, records, shards and requests, with their samples."""

import asyncio
import base64
import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fastapi import Request
from safetensors.torch import save as save_safetensors
from torch import nn

from bsm.checkpoints.weights import copy_state, read_weights
from pipeline.data.audit import audit
from pipeline.data.manifest import Manifest, read_manifest, write_manifest
from pipeline.data.read_rows import make_plan, read_item, train_columns
from pipeline.data.semantic_fields import encode_plane
from pipeline.data.shards import ShardSettings, make_shard, pack
from pipeline.data.source_index import AnnotationRules, File, SourceImage
from pipeline.errors import PipelineError
from pipeline.evaluation.split_reader import truth_from_shards
from pipeline.recipe import ModelTask, Recipe, from_json, to_json
from pipeline.registry.provenance import EvaluationRecord, Origin, TrainingData
from pipeline.server.options import ServeOptions
from pipeline.server.predict_request import decode, read_raw_request
from pipeline.server.request_masks import decode_masks
from pipeline.serving.artifacts import categories_from_json
from pipeline.serving.exported import info_from_json
from pipeline.training import checkpoint
from tests.fuzz.data_readers import (
    _MAX_PIXELS,
    SIDE,
    Reader,
    _to_json,
    draw_coco,
    encode_photo,
)
from tests.fuzz.mutate import (
    Mutator,
    mutate_bytes,
    mutate_json,
    mutate_safetensors,
    mutate_zip,
)


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


def _ask(body: bytes, kind: str, chunk: int, task: ModelTask = "instance") -> bool:
    """Send a body to the server's reader in chunks, and decode its photo and masks."""
    options = ServeOptions(max_bytes=20_000, max_pixels=_MAX_PIXELS)
    parts = [body[at : at + chunk] for at in range(0, len(body), chunk)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, start=1)
    ]

    async def receive() -> dict:
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}
    # In a thread: a browser that other tests have open leaves its event loop running in this one.
    with ThreadPoolExecutor(max_workers=1) as pool:
        reading = read_raw_request(Request(scope, receive), options, task)
        raw = pool.submit(asyncio.run, reading).result()
    photo = decode(raw.photo, options)
    decode_masks(raw.masks, raw.fields, photo.pixels.shape)
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


def _mask_request(_: Path) -> Reader:
    masks = [each["segmentation"] for each in draw_coco()["annotations"]]
    square = encode_plane(np.eye(SIDE, dtype=np.uint8))
    masks += [{"segmentation": masks[0]}, base64.b64encode(square).decode()]
    text = base64.b64encode(encode_photo(".jpg")).decode()
    fields = {"photo": text, "masks": masks, "max_change": 0.5}

    def read(data: bytes) -> bool:
        return _ask(data, "application/json", chunk=500, task="refine")

    return Reader([_to_json(fields)], mutate_json, read)
