"""Predict for a folder of photos with a registered model, and draw the predictions."""

import io
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.data.augment import Pixels
from pipeline.data.manifest import Category
from pipeline.errors import DatasetError, RecipeError, RegistryError
from pipeline.progress import log_progress
from pipeline.registry.versions import (
    ARTIFACTS_FOLDER,
    download_file,
    find_version,
    is_model_uri,
)
from pipeline.report.draw import decode_instances, draw_instances
from pipeline.report.label_picture import assign_colors, draw_label_map
from pipeline.serving.artifacts import SCORE_THRESHOLD
from pipeline.serving.photos import check_photos, read_photo
from pipeline.serving.predictor import Predictor, load_predictor
from pipeline.tracking.stores import resolve_tracking_uri

_SUFFIXES = (".jpg", ".jpeg", ".png")


class RegisteredModel(NamedTuple):
    """A registered version, loaded into this process."""

    model: Predictor
    uri: str
    """models:/NAME/VERSION."""


def load_registered_model(
    model_uri: str, *, tracking: str = "", storage_uri: str = "runs"
) -> RegisteredModel:
    """Load a registered model with the code of this package.

    mlflow.pyfunc.load_model uses the code stored with the model instead, which may be another
    version that cannot be imported beside this package.

    Args:
        model_uri: models:/NAME@champion or models:/NAME/VERSION.
        tracking: URI of the registry; "" means the embedded store under storage_uri.
        storage_uri: as a recipe's storage.

    Raises:
        RecipeError: this package cannot read the recipe of the model.
        RegistryError: there is no such model, or it cannot be loaded.
        StorageError: there is no such registry.
    """
    if not is_model_uri(model_uri):
        raise RegistryError(
            f"model {model_uri!r} must be models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    version = find_version(
        model_uri, registry=resolve_tracking_uri(tracking, storage_uri=storage_uri)
    )
    with download_file(version, ARTIFACTS_FOLDER) as folder:
        return RegisteredModel(load_predictor(folder), version.uri)


def predict_folder(
    registered: RegisteredModel, images: str, out: str | Path, *, score: float | None = None
) -> dict[str, Any]:
    """Predict for every photo under a folder.

    Writes each photo with the predictions drawn on it to `out`, under the same name. For an
    instance model also out/detections.json; for a semantic model out/label_maps/, with a PNG of
    category ids per photo, and out/label_maps.json, which lists their classes.

    Args:
        registered: the model.
        images: folder, searched recursively for jpg and png; or one photo.
        out: local output folder; created if missing.
        score: score threshold of an instance model, 0.5 by default.

    Returns:
        images, seconds, out, model and the output files, for the RESULT line.

    Raises:
        RecipeError: a score is given for a semantic model.
        DatasetError: there is no photo, or some cannot be read; the message lists all of them.
    """
    started = time.perf_counter()
    is_semantic = registered.model.task == "semantic"
    if is_semantic and score is not None:
        raise RecipeError(f"{registered.uri} is a semantic model without scores: remove --score")
    root, names = _list_photos(Path(images), Path(out))
    check_photos([str(root / name) for name in names])
    folder = Path(out)
    photos = _Photos(root, names, folder)
    written = (
        _write_label_maps(registered, photos)
        if is_semantic
        else _write_detections(
            registered, photos, score=SCORE_THRESHOLD if score is None else score
        )
    )
    return {
        "images": len(names),
        **written,
        "seconds": round(time.perf_counter() - started, 3),
        "out": str(folder),
        "model": registered.uri,
    }


class _Photos(NamedTuple):
    """Photos by name, and the output folder."""

    root: Path
    names: Sequence[str]
    out: Path

    def read(self) -> Iterator[tuple[dict[str, Any], Pixels]]:
        """Yield the image entry and the pixels of each photo."""
        names = log_progress(self.names, "predict", total=len(self.names))
        for image_id, name in enumerate(names):
            pixels = read_photo(self.root / name, name=name)
            height, width = pixels.shape[:2]
            yield {"id": image_id, "file_name": name, "height": height, "width": width}, pixels


def _write_detections(
    registered: RegisteredModel, photos: _Photos, *, score: float
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image, pixels in photos.read():
        images.append(image)
        table = registered.model.predict([pixels], params={"score_threshold": score})
        detections = table.to_dict("records")
        name = image["file_name"]
        rows += [
            _to_coco(row, image["id"], name, registered.model.categories) for row in detections
        ]
        _save(draw_instances(pixels, decode_instances(detections)), photos.out / name)
    content = {"score_threshold": score, "images": images, "detections": rows}
    file = photos.out / "detections.json"
    _write_json(file, registered, content)
    return {"detections": len(rows), "detections_file": str(file)}


def _write_label_maps(registered: RegisteredModel, photos: _Photos) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    legend = assign_colors({each.category_id: each.name for each in registered.model.categories})
    folder = photos.out / "label_maps"
    stems = Counter(Path(name).with_suffix("") for name in photos.names)
    for image, pixels in photos.read():
        (row,) = registered.model.predict([pixels]).to_dict("records")
        name = image["file_name"]
        # a.jpg becomes a.png, or a.jpg.png if there is another photo a.
        stem = Path(name).with_suffix("")
        path = folder / (f"{stem}.png" if stems[stem] == 1 else f"{name}.png")
        storage.write_bytes_atomic(str(path), row["label_map"])
        shares = zip(row["category_ids"], row["category_names"], row["pixel_shares"], strict=True)
        images.append(
            image
            | {
                "label_map": path.relative_to(photos.out).as_posix(),
                "classes": [
                    {"category_id": key, "name": named, "pixel_share": share}
                    for key, named, share in shares
                ],
            }
        )
        labels = np.asarray(Image.open(io.BytesIO(row["label_map"])))
        _save(draw_label_map(pixels, labels, legend), photos.out / name)
    file = photos.out / "label_maps.json"
    _write_json(file, registered, {"images": images})
    return {"label_maps": str(folder), "label_maps_file": str(file)}


def _write_json(file: Path, registered: RegisteredModel, content: dict[str, Any]) -> None:
    categories = [asdict(each) for each in registered.model.categories]
    document = {"model": registered.uri, "categories": categories, **content}
    storage.write_bytes_atomic(str(file), (json.dumps(document, indent=1) + "\n").encode())


def _list_photos(images: Path, out: Path) -> tuple[Path, list[str]]:
    if images.is_file():
        root, names = images.parent, [images.name]
    else:
        root = images
        ignored = out.resolve()
        names = [
            path.relative_to(root).as_posix()
            for path in sorted(images.rglob("*"))
            if path.suffix.lower() in _SUFFIXES
            and path.is_file()
            and (ignored == root.resolve() or ignored not in path.resolve().parents)
        ]
    if not names:
        state = "has no" if images.is_dir() else "is not a folder with a"
        raise DatasetError(f"--images {images} {state} {', '.join(_SUFFIXES)} file")
    if out.resolve() == root.resolve():
        raise DatasetError(
            f"--out {out} is the folder of the photos, which would be overwritten; use another"
        )
    return root, names


def _to_coco(
    row: dict[str, Any], image_id: int, file_name: str, categories: tuple[Category, ...]
) -> dict[str, Any]:
    x0, y0, x1, y1 = row["box_xyxy"]
    return {
        "image_id": image_id,
        "file_name": file_name,
        "category_id": categories[row["category_index"]].category_id,
        "category_index": row["category_index"],
        "category_name": row["category_name"],
        "score": row["score"],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": row["rle"],
    }


def _save(picture: Image.Image, path: Path) -> None:
    encoded = io.BytesIO()
    if path.suffix.lower() == ".png":
        picture.save(encoded, format="PNG")
    else:
        picture.save(encoded, format="JPEG", quality=92)
    storage.write_bytes_atomic(str(path), encoded.getvalue())
