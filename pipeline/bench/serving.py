"""Load the HTTP server while its alias moves, then send it bad requests.

The model is small and has random weights, so most of the time is the server's own.
"""

import base64
import http.client
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import cv2
import numpy as np
import torch

from bsm.build import build_model
from bsm.checkpoints.weights import save_weights
from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig
from bsm.configs.shared import FpnBackboneConfig
from pipeline.bench.report import Result
from pipeline.data.manifest import Category
from pipeline.recipe import DataConfig, Recipe
from pipeline.registry.provenance import EvaluationRecord
from pipeline.registry.register import register
from pipeline.server.options import ServeOptions
from pipeline.server.serve import start_server
from pipeline.text import format_markdown
from pipeline.tracking.runs import open_run

_NAME = "bench-serve"
_QUANTILES = (0.5, 0.9, 0.99, 1.0)
_BOUNDARY = "frame"
_OK = 200
_LONGEST_SWAP_S = 120.0


class Call(NamedTuple):
    """A request that was answered, or not."""

    started_s: float
    seconds: float
    status: int
    """0 if there was no answer."""
    model: str


class BadRequest(NamedTuple):
    """A request that must be refused."""

    what: str
    kind: str
    body: bytes


def bench_serving(
    *, clients: int, seconds: float, port: int, replicas: int, print_line: Callable[[str], None]
) -> Result:
    """Measure a server on this machine.

    Args:
        clients: threads that each send one photo after the other.
        seconds: of load before the alias moves, and at least as many after it.
        port: of the server.
        replicas: of the server.
        print_line: prints a line.

    Returns:
        Requests per second, latency quantiles in seconds, failed requests, and the swap.
    """
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as folder:
        tracking = f"sqlite:///{folder}/runs/mlflow.db"
        _register(Path(folder), seed=1)
        options = ServeOptions(port=port, check_alias_s=1, max_pixels=1_000_000, replicas=replicas)
        server = start_server([f"models:/{_NAME}@champion"], options, tracking=tracking, token="")
        try:
            photo = _encode_photo()
            calls, moved_s = _load(server.address, photo, Path(folder), clients, seconds)
            refused = _send_bad(server.address, photo)
        finally:
            server.stop()
    result = _summarize(calls, moved_s)
    rows = [["", "requests", "per second", "p50, s", "p90, s", "p99, s", "longest, s"]]
    print_line(format_markdown([*rows, *_format(calls, moved_s)]))
    print_line(format_markdown([["request", "status", "answer"], *refused]))
    return {
        "clients": clients,
        "replicas": replicas,
        **result,
        "bad requests": {row[0]: row[1] for row in refused},
    }


def _load(
    address: str, photo: bytes, folder: Path, clients: int, seconds: float
) -> tuple[list[Call], float]:
    """Send photos from several threads, and move the alias meanwhile."""
    calls: list[Call] = []
    stop = threading.Event()
    arguments = (address, _make_form({"photo": photo}), calls, stop)
    threads = [threading.Thread(target=_send, args=arguments) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        stop.wait(seconds)
        _register(folder, seed=2)
        moved_s = time.perf_counter()
        while time.perf_counter() - moved_s < _LONGEST_SWAP_S and not calls[-1].model.endswith("2"):
            stop.wait(0.1)
        stop.wait(seconds)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return sorted(calls), moved_s


def _send(address: str, form: bytes, calls: list[Call], stop: threading.Event) -> None:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
    while not stop.is_set():
        started = time.perf_counter()
        try:
            connection.request("POST", "/predict", form, headers)
            response = connection.getresponse()
            status, content = response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            status, content = 0, {}
            connection.close()
        took = time.perf_counter() - started
        calls.append(Call(started, took, status, content.get("model", "")))
    connection.close()


def _send_bad(address: str, photo: bytes) -> list[list[str]]:
    """Send what must be refused; return what it was, the status, and the sentence."""
    rows = []
    for bad in _list_bad(photo):
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        connection.request("POST", "/predict", bad.body, {"Content-Type": bad.kind})
        response = connection.getresponse()
        rows.append([bad.what, str(response.status), json.loads(response.read())["error"]])
        connection.close()
    return rows


def _list_bad(photo: bytes) -> list[BadRequest]:
    form, as_json = f"multipart/form-data; boundary={_BOUNDARY}", "application/json"
    text = base64.b64encode(photo).decode()
    bomb = cv2.imencode(".png", np.zeros((6000, 6000, 3), np.uint8))[1].tobytes()
    files = {
        "empty file": {"photo": b""},
        "not an image": {"photo": b"hello world, this is no photo"},
        "truncated JPEG": {"photo": photo[: len(photo) // 2]},
        "too many bytes": {"photo": photo + bytes(40_000_000)},
        "36 megapixels in a small PNG": {"photo": bomb},
        "threshold out of range": {"photo": photo, "score_threshold": b"1.5"},
        "unknown format": {"photo": photo, "format": b"svg"},
        "unknown field": {"photo": photo, "treshold": b"0.5"},
    }
    bodies = {
        "empty body": b"",
        "bad JSON": b'{"photo": ',
        "bad base64": json.dumps({"photo": text[:-2] + "!"}).encode(),
        "a path": b'{"photo": "/etc/passwd"}',
        "a URL": b'{"photo": "https://example.com/photo.jpg"}',
    }
    return [
        *(BadRequest(what, form, _make_form(fields)) for what, fields in files.items()),
        *(BadRequest(what, as_json, body) for what, body in bodies.items()),
        BadRequest("wrong content type", "text/plain", b"hello"),
    ]


def _make_form(fields: dict[str, bytes]) -> bytes:
    parts = []
    for name, value in fields.items():
        file = '; filename="photo"' if name == "photo" else ""
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts += [head.encode(), value, b"\r\n"]
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])


def _summarize(calls: Sequence[Call], moved_s: float) -> Result:
    good = [each for each in calls if each.status == _OK]
    swapped_s = next((each.started_s for each in calls if each.model.endswith("/2")), None)
    old = [each.started_s for each in calls if each.model.endswith("/1")]
    return {
        "requests": len(calls),
        "failed": len(calls) - len(good),
        "by version": dict(Counter(each.model for each in good)),
        "requests per second": round(_rate(good), 2),
        "latency s": {f"p{100 * q:g}": round(_quantile(good, q), 4) for q in _QUANTILES},
        "alias to first answer s": None if swapped_s is None else round(swapped_s - moved_s, 2),
        # Replicas look at the alias for themselves.
        "alias to last answer of the old version s": round(max(old) - moved_s, 2),
    }


def _format(calls: Sequence[Call], moved_s: float) -> list[list[str]]:
    parts = {
        "all": calls,
        "before the alias moved": [each for each in calls if each.started_s < moved_s],
        "after it": [each for each in calls if each.started_s >= moved_s],
    }
    return [
        [name, str(len(part)), f"{_rate(part):.1f}"]
        + [f"{_quantile(part, q):.3f}" for q in _QUANTILES]
        for name, part in parts.items()
    ]


def _rate(calls: Sequence[Call]) -> float:
    return len(calls) / (max(each.started_s + each.seconds for each in calls) - calls[0].started_s)


def _quantile(calls: Sequence[Call], share: float) -> float:
    return float(np.quantile([each.seconds for each in calls], share))


def _encode_photo() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(pixels, (9, 9), 0)
    return cv2.imencode(".jpg", smooth)[1].tobytes()


def _register(folder: Path, *, seed: int) -> None:
    """Register random weights; a larger seed makes the version the champion."""
    model = MaskRCNNConfig(
        num_classes=3,
        backbone=FpnBackboneConfig(name="resnet18", norm="frozen", freeze_at=0, fpn_channels=16),
        box_head=BoxHeadConfig(hidden=32, detections_per_image=20, score_threshold=0.0),
        mask_head=MaskHeadConfig(channels=16, num_convs=1),
    )
    recipe = Recipe(
        name=_NAME,
        storage=str(folder / "runs"),
        model=model,
        data=DataConfig(short_edge_px=(128,), test_short_edge_px=128, long_edge_px=256),
    )
    categories = [Category(category_id=n, category_index=n, name=f"kind {n}") for n in range(3)]
    weights = folder / f"{seed}.safetensors"
    torch.manual_seed(seed)
    save_weights(build_model(model), weights)
    register(
        open_run(recipe),
        name=_NAME,
        weights_path=weights,
        recipe=recipe,
        categories=categories,
        evaluation=EvaluationRecord(evaluated_on="nothing", metrics={"boundary_ap": seed / 10}),
    )
