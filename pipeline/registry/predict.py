"""A registered model over a folder of photos: what it finds as files, and drawn on every photo."""

import io
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from pipeline import storage
from pipeline.data.augment import Pixels
from pipeline.data.manifest import Category
from pipeline.data.schema import Task
from pipeline.data.semantic_fields import decode_plane
from pipeline.errors import DatasetError, RecipeError, RegistryError
from pipeline.registry.versions import find, is_model_uri, registry_errors
from pipeline.report.draw import overlay, shapes_of
from pipeline.report.label_picture import entries, label_overlay
from pipeline.serving.categories import SCORE_THRESHOLD
from pipeline.serving.photos import check_photos, read_photo
from pipeline.tracking.stores import tracking_uri

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
    task: Task
    """Whether it finds objects or names the class of every pixel."""


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
        inner = model.unwrap_python_model()
    return Pulled(model, found.uri, inner.categories, inner.task)


def predict_folder(
    pulled: Pulled, images: str, out: str | Path, *, score: float | None = None
) -> dict[str, Any]:
    """Predict for every photo under a folder.

    Writes under out each photo, drawn on, by its own name. Of an instance model also
    out/detections.json; of a semantic one out/label_maps/, with a PNG for each photo whose values
    are category ids, and out/label_maps.json, which tells what is in them.

    Args:
        pulled: the model.
        images: a folder, searched with its subfolders for jpg and png, or one photo.
        out: local folder to write to; made when it is not there.
        score: of an instance model: detections below are left out; 0.5 unless said.

    Returns:
        images, seconds, out, model and what was found, for the RESULT line.

    Raises:
        RecipeError: a score is given for a model that has none.
        DatasetError: there is no photo, or some cannot be read; all of them are named.
    """
    started = time.perf_counter()
    if pulled.task == "semantic" and score is not None:
        raise RecipeError(
            f"{pulled.uri} names the class of every pixel and has no scores: leave out --score"
        )
    root, names = _photos(Path(images), Path(out))
    check_photos([str(root / name) for name in names])
    folder = Path(out)
    photos = _Photos(root, names, folder)
    found = (
        _label_maps(pulled, photos)
        if pulled.task == "semantic"
        else _detections(pulled, photos, score=SCORE_THRESHOLD if score is None else score)
    )
    return {
        "images": len(names),
        **found,
        "seconds": round(time.perf_counter() - started, 3),
        "out": str(folder),
        "model": pulled.uri,
    }


class _Photos(NamedTuple):
    """The photos to look at, and where what is seen goes."""

    root: Path
    names: Sequence[str]
    out: Path

    def read(self) -> Iterator[tuple[dict[str, Any], Pixels]]:
        """Yield an entry of images and the pixels of each."""
        for image_id, name in _reported(self.names):
            pixels = read_photo(self.root / name, name=name)
            height, width = pixels.shape[:2]
            yield {"id": image_id, "file_name": name, "height": height, "width": width}, pixels


def _detections(pulled: Pulled, photos: _Photos, *, score: float) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image, pixels in photos.read():
        images.append(image)
        table: Any = pulled.model.predict([pixels], params={"score_threshold": score})
        found = table.to_dict("records")
        name = image["file_name"]
        rows += [_coco_row(row, image["id"], name, pulled.categories) for row in found]
        _save(overlay(pixels, shapes_of(found)), photos.out / name)
    content = {"score_threshold": score, "images": images, "detections": rows}
    file = photos.out / "detections.json"
    _write_json(file, pulled, content)
    return {"detections": len(rows), "detections_file": str(file)}


def _label_maps(pulled: Pulled, photos: _Photos) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    legend = entries({each.category_id: each.name for each in pulled.categories})
    folder = photos.out / "label_maps"
    stems = Counter(Path(name).with_suffix("") for name in photos.names)
    for image, pixels in photos.read():
        table: Any = pulled.model.predict([pixels])
        (row,) = table.to_dict("records")
        name = image["file_name"]
        # Of a.jpg it is a.png, unless there is another photo of that name.
        stem = Path(name).with_suffix("")
        place = folder / (f"{stem}.png" if stems[stem] == 1 else f"{name}.png")
        storage.write_bytes_atomic(str(place), row["label_map"])
        shares = zip(row["category_ids"], row["category_names"], row["pixel_shares"], strict=True)
        images.append(
            image
            | {
                "label_map": place.relative_to(photos.out).as_posix(),
                "classes": [
                    {"category_id": key, "name": named, "pixel_share": share}
                    for key, named, share in shares
                ],
            }
        )
        labels = decode_plane(row["label_map"])
        if labels is None:
            raise RegistryError(f"{pulled.uri} gave a label map that is no PNG; register it again")
        _save(label_overlay(pixels, labels, legend), photos.out / name)
    file = photos.out / "label_maps.json"
    _write_json(file, pulled, {"images": images})
    return {"label_maps": str(folder), "label_maps_file": str(file)}


def _write_json(file: Path, pulled: Pulled, content: dict[str, Any]) -> None:
    categories = [asdict(each) for each in pulled.categories]
    told = {"model": pulled.uri, "categories": categories, **content}
    storage.write_bytes_atomic(str(file), (json.dumps(told, indent=1) + "\n").encode())


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


def _reported(names: Sequence[str]) -> Iterator[tuple[int, str]]:
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
    encoded = io.BytesIO()
    if path.suffix.lower() == ".png":
        picture.save(encoded, format="PNG")
    else:
        picture.save(encoded, format="JPEG", quality=92)
    storage.write_bytes_atomic(str(path), encoded.getvalue())
