"""Train mask heads at an equal budget and measure every mask: one result for each head and seed.

All runs share a frozen backbone, whose features are computed once (pipeline/study/features.py), and
the runs of a seed see the same images in the same order, so heads are compared seed by seed and
object by object. A run keeps the quality of every object, not only its means, and its masks as a
COCO results file. Finished runs are skipped: a stopped study continues, and two processes can share
one with different heads or seeds.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_api
from torch import nn

from bsm.build import build_model
from bsm.refine.refine import refine_masks as sharpen
from bsm.refine.refiner import Refiner
from pipeline import checksums, storage
from pipeline.data.augment import decode_row
from pipeline.data.photo import Pixels
from pipeline.data.stream import StepBatch, local_batches
from pipeline.errors import TrainingError
from pipeline.evaluation.chunks import run_chunks
from pipeline.evaluation.evaluate import plan_evaluation
from pipeline.evaluation.mask_quality import measure_mask_quality
from pipeline.evaluation.split_reader import plan_chunks, read_chunk, truth_from_shards
from pipeline.recipe import Recipe, fingerprint, reads_masks
from pipeline.study.features import CachedBackbone
from pipeline.study.summary import BANDS, HeadRun
from pipeline.training.optim import build_optimizer, learning_rate
from pipeline.training.start_weights import with_local_weights
from pipeline.training.step import BadStep, StepMetrics, WorkerContext, train_step

_log = logging.getLogger(__name__)

Rows: TypeAlias = list[dict[str, Any]]

Masks: TypeAlias = NDArray[np.bool_]

Refine: TypeAlias = Callable[[Pixels, Masks], Masks]
"""Turns a photo (H, W, 3) RGB and masks (R, H, W) into sharper masks (R, H, W)."""


class StudyRefiner(NamedTuple):
    """A refiner whose masks are measured beside those of every head."""

    uri: str
    """Its model version: masks of another one are refined again."""
    refine: Refine


REFINED = ", refined"
"""Ends the name of a head whose masks a refiner changed."""


def train_heads(
    recipes: Mapping[str, Recipe],
    *,
    seeds: Sequence[int],
    out: Path,
    cache: Path,
    refiner: StudyRefiner | None = None,
) -> None:
    """Train and measure every head with every seed, skipping finished runs.

    Args:
        recipes: by head; seed, name and storage are set here.
        seeds: one run each.
        out: folder for the runs; each has result.json and masks.json.
        cache: folder for the features of the backbone.
        refiner: also measure the masks that it returns, as another head.

    Raises:
        TrainingError: a loss is not finite.
    """
    for seed in seeds:
        for head, recipe in recipes.items():
            run = _name_run(recipe, head, seed, out)
            folder = out / run.name
            if not _is_finished(folder, run):
                folder.mkdir(parents=True, exist_ok=True)
                _log.info("%s: training", run.name)
                model, train_s = train_head(run, cache=cache)
                rows = predict_masks(model, run)
                _write_json(folder / "masks.json", rows)
                _write_result(folder, run, head=head, rows=rows, train_s=train_s)
            refined = out / f"{run.name}-refined"
            if refiner is not None and not _is_finished(refined, run, refined_by=refiner.uri):
                _log.info("%s: refining", run.name)
                refined.mkdir(exist_ok=True)
                rows = json.loads(checksums.read_file(str(folder / "masks.json")))
                rows = refine_masks(rows, split_uri=_get_val_uri(run), refine=refiner.refine)
                _write_json(refined / "masks.json", rows)
                _write_result(
                    refined,
                    run,
                    head=head + REFINED,
                    rows=rows,
                    train_s=0.0,
                    refined_by=refiner.uri,
                )


def study_refiner(model: Refiner, uri: str) -> StudyRefiner:
    """Wrap a trained `bsm.refine.refiner.Refiner`, which refines on its own device."""
    device = next(model.parameters()).device

    def refine(photo: Pixels, masks: Masks) -> Masks:
        image = torch.from_numpy(photo).to(device).permute(2, 0, 1)
        given = torch.from_numpy(masks).to(device)
        sharper: Masks = sharpen(model, image, given).masks.cpu().numpy()
        return sharper

    return StudyRefiner(uri, refine)


def train_head(recipe: Recipe, *, cache: Path) -> tuple[nn.Module, float]:
    """Train the masks of a recipe's model, in this process; return it with the seconds it took.

    With OptimConfig.amp it trains in bfloat16, on a CPU too.

    Raises:
        TrainingError: a loss is not finite.
    """
    device = torch.device("cuda" if recipe.scale.use_gpu else "cpu")
    torch.manual_seed(recipe.seed)
    with with_local_weights(recipe.model) as config:
        model: Any = build_model(config)
    model.backbone = CachedBackbone(model.backbone, cache)
    model.to(device).train()
    if recipe.optim.amp and device.type == "cpu":  # train_step uses it on a GPU only
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    optimizer, optim = build_optimizer(model, optim=recipe.optim), recipe.optim
    metrics, began_s = StepMetrics(WorkerContext(device=device)), time.perf_counter()
    for item in _read_batches(recipe):
        output = train_step(
            model,
            optimizer,
            microbatches=item.microbatches,
            step=item.step,
            optim=optim,
            device=device,
        )
        lr, done = learning_rate(optim, step=item.step), item.step + 1
        metrics.add(output, step=item.step, epoch=item.epoch, lr=lr, microbatches=item.microbatches)
        if done % recipe.tracking.log_every == 0 or done == optim.steps:
            summary = metrics.reduce()
            if isinstance(summary, BadStep):
                raise TrainingError(
                    f"{recipe.name}, step {summary.step}: a loss or gradient is not finite, on "
                    f"images {summary.image_ids}. Train this head with a lower learning rate."
                )
            _log.info(
                "%s: step %d/%d  loss %.3f  %.2f s per step",
                recipe.name,
                done,
                optim.steps,
                summary.means["loss"],
                summary.seconds / summary.steps,
            )
    return model, time.perf_counter() - began_s


def predict_masks(model: nn.Module, recipe: Recipe) -> Rows:
    """Predict masks in the true boxes of the validation split.

    Returns:
        rows of a COCO results file in the order of the truth, with the annotation's id in the
        truth that `truth_from_shards` rebuilds.
    """
    split_uri = _get_val_uri(recipe)
    chunks, task = plan_evaluation(model, split_uri, recipe.data, recipe.evaluation)
    found = run_chunks(model, chunks, task.make_predictor)
    rows = [row for chunk in found for row in chunk.rows]
    ids: dict[int, list[int]] = {}
    for each in truth_from_shards(split_uri)["annotations"]:
        if not each["iscrowd"]:
            ids.setdefault(each["image_id"], []).append(each["id"])
    left = {image_id: iter(own) for image_id, own in ids.items()}
    return [{"id": next(left[row["image_id"]]), **row} for row in rows]


def refine_masks(rows: Rows, *, split_uri: str, refine: Refine) -> Rows:
    """Refine the masks of a results file, image by image, with the photos of a split."""
    by_image: dict[int, Rows] = {}
    for row in rows:
        by_image.setdefault(row["image_id"], []).append(row)
    refined: Rows = []
    for chunk in plan_chunks(split_uri, max_images=None, images_per_chunk=1):
        own = by_image.get(chunk.image_ids[0], [])
        if not own:
            continue
        photo = decode_row(read_chunk(split_uri, chunk), 0)
        masks = np.stack([mask_api.decode(row["segmentation"]).astype(np.bool_) for row in own])
        for row, mask in zip(own, refine(photo, masks), strict=True):
            rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
            counts = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
            refined.append({**row, "segmentation": counts})
    return refined


def measure_masks(rows: Rows, *, split_uri: str) -> dict[str, Any]:
    """Measure every object of a results file in true boxes: the fields of a HeadRun."""
    truth = truth_from_shards(split_uri)
    qualities = {
        name: measure_mask_quality(truth, rows, dilation_ratio=ratio)
        for name, ratio in BANDS.items()
    }
    first = next(iter(qualities.values()))
    order = {image["id"]: index for index, image in enumerate(truth["images"])}
    image_ids = sorted(
        (each["image_id"] for each in truth["annotations"] if not each["iscrowd"]),
        key=order.__getitem__,
    )
    return {
        "image_id": image_ids,
        "area_px": first.area_px.tolist(),
        "iou": {"mask": first.mask_iou.round(5).tolist()}
        | {name: each.boundary_iou.round(5).tolist() for name, each in qualities.items()},
    }


def read_runs(recipes: Mapping[str, Recipe], *, out: Path) -> list[HeadRun]:
    """Read the results of all runs in a folder that match the given recipes."""
    runs = []
    for path in sorted(out.glob("*/result.json")):
        record: dict[str, Any] = json.loads(checksums.read_file(str(path)))
        head, expected = record["head"].removesuffix(REFINED), record.pop("recipe")
        record.pop("refined_by", "")
        recipe = recipes.get(head)
        if recipe and fingerprint(_name_run(recipe, head, record["seed"], out)) == expected:
            runs.append(HeadRun(**record))
    return runs


def _read_batches(recipe: Recipe) -> Iterator[StepBatch]:
    return local_batches(
        storage.join(recipe.data.root, recipe.data.train_split),
        recipe.data,
        seed=recipe.seed,
        global_batch=recipe.optim.global_batch,
        images_per_microbatch=recipe.scale.microbatch,
        first_step=0,
        stop_step=recipe.optim.steps,
        with_masks=reads_masks(recipe.model),
    )


def _is_finished(folder: Path, run: Recipe, *, refined_by: str = "") -> bool:
    path = folder / "result.json"
    if not path.exists():
        return False
    record = json.loads(checksums.read_file(str(path)))
    return (record["recipe"], record.get("refined_by", "")) == (fingerprint(run), refined_by)


def _write_result(
    folder: Path, run: Recipe, *, head: str, rows: Rows, train_s: float, refined_by: str = ""
) -> None:
    record = {"head": head, "seed": run.seed, "recipe": fingerprint(run), "train_s": train_s}
    record |= {"refined_by": refined_by} if refined_by else {}
    measured = measure_masks(rows, split_uri=_get_val_uri(run))
    _write_json(folder / "result.json", record | measured)


def _write_json(path: Path, content: object) -> None:
    checksums.write_file(str(path), json.dumps(content).encode())


def _name_run(recipe: Recipe, head: str, seed: int, out: Path) -> Recipe:
    return replace(recipe, name=f"{head}-{seed}", seed=seed, storage=str(out))


def _get_val_uri(recipe: Recipe) -> str:
    return storage.join(recipe.data.root, recipe.data.val_split)
