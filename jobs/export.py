#!/usr/bin/env python
"""Export registered models and shards to formats that other programs read.

    python jobs/export.py model models:/photos@champion --format onnx --out photos.onnx
    python jobs/export.py model models:/photos@champion --format torch-export --out photos.pt2
    python jobs/export.py data ~/shards/photos --split val --out coco

A model becomes one file with its categories, sizes, mean and deviation inside; jobs/predict.py
takes the ONNX file where torch is not installed. Shards become a COCO data set.
"""

from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pipeline.cli import Result, Verb, run_verb
from pipeline.text import format_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.data.photo import Pixels
    from pipeline.serving.predictor import Predictor

Positional = Annotated[str, tyro.conf.Positional]


def model(
    *,
    model: Positional,
    out: str,
    format: Literal["onnx", "torch-export"] = "onnx",
    size: tuple[int, int] | None = None,
    check: tuple[str, ...] = (),
    data_license: str = "",
    tracking_uri: str = "",
) -> Result:
    """Export a registered model to one file.

    Args:
        model: models:/NAME@champion or models:/NAME/VERSION.
        out: file to write.
        format: onnx for onnxruntime, TensorRT and others, torch-export for programs with torch.
        size: height and width of the only input that the file takes; by default it takes any. For
            runtimes that want fixed shapes.
        check: photos or folders; compare the ONNX file with the model on them.
        data_license: license of the training data, to be stated in the file.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE; by default
            MLFLOW_TRACKING_URI, or else the embedded store runs/mlflow.db.
    """
    from pipeline.errors import RecipeError
    from pipeline.export.model import export_model
    from pipeline.registry.predict import load_registered_model

    if check and format != "onnx":
        raise RecipeError(f"--check needs --format onnx, got {format}")
    # Tracing takes the paths of a fixed shape, on any device; the CPU is always there.
    registered = load_registered_model(model, tracking=tracking_uri, device="cpu")
    result = export_model(
        registered.model,
        registered.uri,
        out,
        file_format=format,
        fixed_hw=size,
        data_license=data_license,
    )
    print(f"{registered.uri}: {result['file']}, {result['megabytes']} MB")
    return {**result, **(_check(registered.model, out, check) if check else {})}


def _check(model: "Predictor", file: str, photos: tuple[str, ...]) -> Result:
    from pathlib import Path

    from pipeline.errors import DatasetError
    from pipeline.export.parity import compare
    from pipeline.prediction.photo_folder import list_photos
    from pipeline.serving.onnx_predictor import load_onnx
    from pipeline.serving.photos import read_photo

    listed = list_photos(photos, Path(file))

    def read() -> "Iterator[Pixels]":
        for name in listed.names:
            try:
                yield read_photo(listed.root / name, name=name)
            except DatasetError as error:
                print(f"left out of the check: {error}")

    parity = compare(model, load_onnx(file), read())
    if not parity.pixels and not parity.missing:
        print(
            "the check compared nothing: the model finds no object in "
            f"{format_count(parity.photos, 'photo')}; name others with --check"
        )
        return {"check": parity._asdict()}
    print(
        f"checked on {format_count(parity.photos, 'photo')}: {parity.objects} objects, "
        f"{parity.missing} without a partner, boxes within {parity.box_px:.3g} px, "
        f"scores within {parity.score:.2g}, "
        f"{100 * parity.equal_share:.4f} % of pixels equal, in the worst mask "
        f"{100 * parity.worst_mask:.2f} %"
    )
    return {"check": {**parity._asdict(), "equal_share": parity.equal_share}}


def data(*, shards: Positional, split: str, out: str, license: str = "") -> Result:
    """Write the shards of a split as COCO: annotations/instances_SPLIT.json and photos in SPLIT/.

    Args:
        shards: folder or URI with one folder of shards per split.
        split: name of the split.
        out: folder or URI to write.
        license: license of the photos, to be stated in the JSON file.
    """
    from pipeline.export.shards import export_shards

    result = export_shards(shards, out, split=split, license=license)
    print(f"{result['images']} images, {result['annotations']} annotations: {out}")
    return result


VERBS: dict[str, Verb] = {"model": model, "data": data}

if __name__ == "__main__":
    run_verb(VERBS)
