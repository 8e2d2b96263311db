"""A registered model over a folder of photos: detections as JSON, every photo with its masks."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from pipeline import storage
from pipeline.data.manifest import Category
from pipeline.errors import DatasetError, RegistryError
from pipeline.report.draw import overlay, shapes_of
from pipeline.serving.photos import check_photos, read_photo
from pipeline.tracking.model_parts import SCORE_THRESHOLD
from pipeline.tracking.stores import tracking_uri
from pipeline.tracking.versions import find, is_model_uri, registry_errors

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

_log = logging.getLogger(__name__)

_SUFFIXES = (".jpg", ".jpeg", ".png")
_LOG_EVERY_S = 5.0


class Pulled(NamedTuple):
    """A registered model in this process."""

    model: "PyFuncModel"
    uri: str
    """models:/NAME/VERSION: which version an alias stood for."""
    categories: tuple[Category, ...]


def pull(model_uri: str, *, tracking: str = "", storage_uri: str = "runs") -> Pulled:
    """Load a registered model.

    Args:
        model_uri: models:/NAME@champion or models:/NAME/VERSION.
        tracking: where the registry is; "" is the embedded store under storage_uri.
        storage_uri: as a recipe's storage.

    Raises:
        RegistryError: there is no such model, or it cannot be loaded.
        StorageError: there is no such registry.
    """
    if not is_model_uri(model_uri):
        raise RegistryError(
            f"model {model_uri!r} must be models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    found = find(model_uri, registry=tracking_uri(tracking, storage_uri=storage_uri))

    # Not at the top: it is slow to import, and reads what client() sets.
    import mlflow.pyfunc  # noqa: PLC0415
    from mlflow.artifacts import download_artifacts  # noqa: PLC0415

    with registry_errors(f"{found.uri} cannot be loaded"):
        # Not by its name: pyfunc knows registries only as a setting of the whole process.
        folder = download_artifacts(artifact_uri=found.source, tracking_uri=found.registry)
        model = mlflow.pyfunc.load_model(folder)
        categories = model.unwrap_python_model().categories
    return Pulled(model, found.uri, categories)


def predict_folder(
    pulled: Pulled, images: str, out: str | Path, *, score: float = SCORE_THRESHOLD
) -> dict[str, Any]:
    """Predict for every photo under a folder.

    Writes out/detections.json and, under out, each photo with its masks by the photo's own name.

    Args:
        pulled: the model.
        images: a folder, searched with its subfolders for jpg and png, or one photo.
        out: local folder to write to; made when it is not there.
        score: detections below are left out.

    Returns:
        images, detections, seconds, out and model, for the RESULT line.

    Raises:
        DatasetError: there is no photo, or some cannot be read; all of them are named.
    """
    started = time.perf_counter()
    root, names = _photos(Path(images), Path(out))
    check_photos([str(root / name) for name in names])
    folder = Path(out)
    entries: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image_id, name in _reported(names):
        pixels = read_photo(root / name, name=name)
        height, width = pixels.shape[:2]
        entries.append({"id": image_id, "file_name": name, "height": height, "width": width})
        table: Any = pulled.model.predict([pixels], params={"score_threshold": score})
        found = table.to_dict("records")
        rows += [_coco_row(row, image_id, name, pulled.categories) for row in found]
        _save(overlay(pixels, shapes_of(found)), folder / name)
    file = folder / "detections.json"
    content = {
        "model": pulled.uri,
        "score_threshold": score,
        "images": entries,
        "categories": [asdict(each) for each in pulled.categories],
        "detections": rows,
    }
    storage.write_bytes_atomic(str(file), (json.dumps(content, indent=1) + "\n").encode())
    return {
        "images": len(names),
        "detections": len(rows),
        "seconds": round(time.perf_counter() - started, 3),
        "out": str(folder),
        "detections_file": str(file),
        "model": pulled.uri,
    }


def _photos(images: Path, out: Path) -> tuple[Path, list[str]]:
    if images.is_file():
        root, names = images.parent, [images.name]
    else:
        root = images
        ignored = out.resolve()
        found = (path for path in sorted(images.rglob("*")) if path.suffix.lower() in _SUFFIXES)
        names = [
            path.relative_to(root).as_posix()
            for path in found
            if path.is_file()
            and (ignored == root.resolve() or ignored not in path.resolve().parents)
        ]
    if not names:
        state = "holds no" if images.is_dir() else "is no folder with"
        raise DatasetError(f"--images {images} {state} {', '.join(_SUFFIXES)} file")
    if out.resolve() == root.resolve():
        raise DatasetError(
            f"--out {out} is the folder of the photos, which would be overwritten; take another"
        )
    return root, names


def _reported(names: list[str]) -> Iterator[tuple[int, str]]:
    started = told = time.perf_counter()
    for done, name in enumerate(names):
        yield done, name
        now = time.perf_counter()
        if now - told >= _LOG_EVERY_S or done + 1 == len(names):
            told = now
            speed = (done + 1) / (now - started)
            eta_s = round((len(names) - done - 1) / speed)
            _log.info(
                "predict %d/%d images  %.1f img/s  eta %ds", done + 1, len(names), speed, eta_s
            )


def _coco_row(
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
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        picture.save(path)
    else:
        picture.save(path, quality=92)
