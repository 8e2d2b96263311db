"""Folders of finished runs, made from the truth without training."""

from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

from pipeline import storage
from pipeline.data.collate_semantic import decode_label
from pipeline.data.manifest import read_manifest
from pipeline.evaluation.evaluate import truth_from_shards, write_detections
from pipeline.evaluation.label_planes import encode_labels
from pipeline.evaluation.metrics import evaluate_metrics
from pipeline.evaluation.split_reader import plan_chunks, read_chunk
from pipeline.recipe import Recipe, to_json
from pipeline.registry import provenance
from pipeline.registry.provenance import EvaluationRecord
from pipeline.tracking import runs

SHIFTS_PX = (0, 1, 2, 4)
"""How far the masks of the made detections are from the truth, in turn."""


def make_detections(truth: dict, *, shifts_px: tuple[int, ...] = SHIFTS_PX) -> list[dict]:
    """Shift each true mask, with a lower score for a larger shift; leave out every ninth object."""
    rows = []
    objects = [each for each in truth["annotations"] if not each["iscrowd"]]
    for number, each in enumerate(objects):
        if number % 9 == 8:
            continue
        shift = shifts_px[number % len(shifts_px)]
        mask = np.roll(mask_api.decode(each["segmentation"]), shift, axis=1)
        rle = mask_api.encode(np.asfortranarray(mask))
        rows.append(
            {
                "image_id": each["image_id"],
                "category_id": each["category_id"],
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "bbox": [float(value) for value in mask_api.toBbox(rle)],
                "score": 0.95 - 0.1 * (number % len(shifts_px)),
            }
        )
    return rows


def make_instance_run(
    recipe: Recipe, *, tracked: bool = True, shifts_px: tuple[int, ...] = SHIFTS_PX
) -> Path:
    """Write the folder of a run whose detections are shifted truths."""
    folder = Path(recipe.storage, recipe.name)
    folder.mkdir(parents=True)
    val_uri = storage.join(recipe.data.root, recipe.data.val_split)
    truth = truth_from_shards(val_uri)
    rows = make_detections(truth, shifts_px=shifts_px)
    write_detections(str(folder / "detections.json"), rows)
    found = evaluate_metrics(truth, rows, metrics=("segm", "boundary", "bbox"))
    metrics = {name: value for each in found.values() for name, value in each.flat().items()}
    names = [each["name"] for each in truth["categories"]]
    per_category = {
        name: {f"{each.prefix}_ap": each.per_category[name] for each in found.values()}
        for name in names
    }
    _finish(folder, recipe, metrics, per_category, images=len(truth["images"]), tracked=tracked)
    return folder


def make_semantic_run(recipe: Recipe) -> Path:
    """Write the folder of a run whose label maps are those of the truth, moved by some pixels."""
    folder = Path(recipe.storage, recipe.name)
    val_uri = storage.join(recipe.data.root, recipe.data.val_split)
    manifest = read_manifest(val_uri)
    number = 0
    for chunk in plan_chunks(val_uri, max_images=None, images_per_chunk=8):
        table = read_chunk(val_uri, chunk, truth=["label"])
        for row in range(len(table)):
            labels = np.roll(decode_label(table, row), 2 * number, axis=0)
            name = table["file_name"][row].as_py().rpartition(".")[0]
            file = folder / "label_maps" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            labels = np.minimum(labels, len(manifest.categories) - 1)
            file.write_bytes(encode_labels(labels, manifest.categories))
            number += 1
    names = [each.name for each in manifest.categories]
    per_category = {
        name: {"iou": 0.5 + 0.1 * index, "boundary_f_1px": 0.4} for index, name in enumerate(names)
    }
    metrics = {"miou": 0.6, "boundary_f_1px": 0.4}
    _finish(folder, recipe, metrics, per_category, images=number, tracked=True)
    return folder


def _finish(
    folder: Path,
    recipe: Recipe,
    metrics: dict[str, float],
    per_category: dict[str, dict[str, float]],
    *,
    images: int,
    tracked: bool,
) -> None:
    (folder / "recipe.json").write_text(to_json(recipe))
    record = EvaluationRecord(
        evaluated_on=f"abc, {images} images", metrics=metrics, per_category=per_category
    )
    (folder / "metrics.json").write_text(provenance.to_json(record))
    if not tracked:
        return
    handle = runs.open_run(recipe)
    for step in (10, 20):
        logged = {"loss": 30 / step, "loss_mask": 10 / step, "lr": 0.01, "images_per_s": 5.0}
        runs.log_metrics(handle, logged | {"data_share": 0.1, "memory_gb": 1.0}, step=step)
    runs.finish(handle)
