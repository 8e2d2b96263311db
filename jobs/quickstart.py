#!/usr/bin/env python
"""Train and register a model on a laptop in minutes, from generated images.

python jobs/quickstart.py        (or: make quickstart)

Writes a generated dataset as COCO files, ingests it, trains Mask R-CNN with the boundary squeeze on
two workers, evaluates it on held-out images, registers it, loads it back by its alias and predicts.
All outputs are in runs/quickstart; a second call resumes where the first one stopped.
"""

import contextlib
import io
import time
from dataclasses import replace
from pathlib import Path

from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig, ProposalConfig
from bsm.configs.shared import FpnBackboneConfig, GuidedFlowConfig
from pipeline.cli import Result, run_verb
from pipeline.progress import format_duration
from pipeline.recipe import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    Recipe,
    ScaleConfig,
    TrackingConfig,
)
from pipeline.rows import Row

# A small version of the paper's model: 128 px images, about three minutes on two cores.
RECIPE = Recipe(
    name="shapes",
    storage="runs/quickstart",
    model=MaskRCNNConfig(
        num_classes=5,
        backbone=FpnBackboneConfig(name="resnet10t", norm="group", freeze_at=0, fpn_channels=48),
        proposals=ProposalConfig(
            anchor_sizes_px=(12.0, 24.0, 40.0, 64.0, 96.0),
            top_k_before_nms_train=200,
            top_k_before_nms_test=200,
            top_k_after_nms=100,
            samples_per_image=64,
        ),
        box_head=BoxHeadConfig(hidden=256, samples_per_image=48, detections_per_image=20),
        mask_head=MaskHeadConfig(
            channels=32, num_convs=2, guided_flow=GuidedFlowConfig(weight=0.5)
        ),
    ),
    data=DataConfig(
        root="runs/quickstart/shards",
        train_split="train",
        val_split="val",
        short_edge_px=(128,),
        test_short_edge_px=128,
        long_edge_px=128,
    ),
    optim=OptimConfig(
        global_batch=8,
        optimizer="adamw",
        lr_per_image=0.003 / 8,
        weight_decay=0.05,
        steps=340,
        warmup_steps=30,
        warmup_factor=0.05,
        decay_at=(260, 315),
        clip_norm=5.0,
    ),
    scale=ScaleConfig(num_workers=2, images_per_microbatch=4, threads_per_worker=1),
    checkpoint=CheckpointConfig(every_steps=100),
    evaluation=EvaluationConfig(images_per_batch=4),
    tracking=TrackingConfig(experiment="quickstart", model_name="bsm-shapes", log_every=10),
)

MODEL = f"models:/{RECIPE.tracking.model_name}@champion"

MAX_IMAGES = 4
MIN_OBJECTS = 3
"""The picture shows the first MAX_IMAGES held-out images with at least MIN_OBJECTS objects."""


def quickstart(
    *,
    out: Path = Path("runs/quickstart"),
    steps: int = RECIPE.optim.steps,
    train_images: int = 1000,
    val_images: int = 60,
    num_workers: int = RECIPE.scale.num_workers,
) -> Result:
    """Generate, ingest, train, evaluate, register, load, predict and draw.

    Args:
        out: folder for all outputs; delete it to start over.
        steps: optimizer steps.
        train_images: images to generate for training.
        val_images: images to generate for evaluation.
        num_workers: Ray Train workers; 0 trains in this process, without Ray.
    """
    clock = _Clock()
    recipe = replace(
        RECIPE,
        storage=str(out),
        data=replace(RECIPE.data, root=str(out / "shards")),
        optim=replace(RECIPE.optim, steps=steps),
        scale=replace(RECIPE.scale, num_workers=num_workers),
    )
    images = out / "coco"
    clock.begin("generate", f"{train_images} + {val_images} images of shapes into {images}")
    _generate(images, train_images=train_images, val_images=val_images)
    clock.begin("ingest", f"{images} into {recipe.data.root}")
    _ingest(images, recipe)
    clock.begin("train", f"{steps} steps of {recipe.optim.global_batch} images; evaluate; register")
    trained = _train(recipe)
    # After very few steps it finds nothing, and is no champion.
    model = MODEL if trained["is_champion"] else trained["model"]
    clock.begin("predict", f"load {model} and draw its predictions")
    truth = images / "annotations" / "instances_val.json"
    picture = _predict(recipe, model, images / "val", truth=truth)
    clock.end()
    # Split the training phase into check, train, evaluate and register.
    phases = clock.phases | trained["seconds_by_phase"]
    _print_summary(recipe, model, trained, phases=phases, seconds=clock.seconds, picture=picture)
    return {
        **trained,
        "seconds": round(clock.seconds, 1),
        "seconds_by_phase": {name: round(value, 1) for name, value in phases.items()},
        "picture": str(picture),
    }


class _Clock:
    """Times the phases, and prints a line at the start of each."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._phase = ""
        self._phase_begin = 0.0
        self.phases: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def begin(self, phase: str, text: str) -> None:
        self.end()
        self._phase, self._phase_begin = phase, self.seconds
        print(f"\n[{format_duration(self.seconds)}] {phase.upper()}: {text}")

    def end(self) -> None:
        if self._phase:
            self.phases[self._phase] = self.seconds - self._phase_begin
        self._phase = ""


def _generate(root: Path, *, train_images: int, val_images: int) -> None:
    from pipeline.data.sources.shapes import write_shapes

    counts = write_shapes(root, train_images=train_images, val_images=val_images)
    print(f"{counts['images']} images, {counts['annotations']} annotations, in COCO format")


def _ingest(root: Path, recipe: Recipe) -> None:
    from pipeline.data.ingest import CocoIngest, ingest_dataset

    for split in (recipe.data.train_split, recipe.data.val_split):
        ingest_dataset(
            CocoIngest(
                root=str(root),
                split=split,
                out=f"{recipe.data.root}/{split}",
                workers=-1 if recipe.scale.num_workers else 0,
            )
        )


def _train(recipe: Recipe) -> Result:
    from pipeline.training import launch

    return launch.run(recipe, row=Row(RECIPE, "BSM with guided flow, small"))


def _predict(recipe: Recipe, model: str, images: Path, *, truth: Path) -> Path:
    """Load the registered model, and draw its predictions next to the ground truth."""
    from pycocotools.coco import COCO

    from pipeline.registry.predict import load_registered_model
    from pipeline.report.boundary_picture import Panel, draw_boundary_errors
    from pipeline.report.draw import decode_instance, decode_instances
    from pipeline.serving.artifacts import SCORE_THRESHOLD
    from pipeline.serving.photos import read_photo

    registered = load_registered_model(model, storage_uri=recipe.storage)
    print(f"loaded {registered.uri}")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
    index = {each.category_id: each for each in registered.model.categories}
    crowded = [i for i in sorted(coco.imgs) if len(coco.getAnnIds(i)) >= MIN_OBJECTS]
    panels = []
    for image_id in crowded[:MAX_IMAGES]:
        name = coco.imgs[image_id]["file_name"]
        photo = read_photo(images / name, name=name)
        found = registered.model.predict_photo(photo, score_threshold=SCORE_THRESHOLD)
        true = [(coco.annToRLE(a), index[a["category_id"]]) for a in coco.imgToAnns[image_id]]
        panels.append(
            Panel(
                name,
                photo,
                [
                    decode_instance(rle, category_index=c.category_index, name=c.name)
                    for rle, c in true
                ],
                decode_instances(found),
            )
        )
        print(f"{name}: {len(found)} of {len(true)} objects found")
    picture = Path(recipe.storage) / "quickstart.png"
    draw_boundary_errors(panels, picture)
    return picture


def _print_summary(
    recipe: Recipe,
    model: str,
    trained: Result,
    *,
    phases: dict[str, float],
    seconds: float,
    picture: Path,
) -> None:
    print(f"\n{'':12}{'AP':>8}{'AP50':>8}{'AP75':>8}   on {trained['images']} held-out images")
    for name in ("mask", "boundary", "box"):
        numbers = (trained[f"{name}_ap{level}"] for level in ("", "50", "75"))
        print(f"{name:12}" + "".join("       -" if n is None else f"{n:8.3f}" for n in numbers))
    parts = ", ".join(f"{name} {format_duration(value)}" for name, value in phases.items())
    print(f"\ntime        {format_duration(seconds)}: {parts}")
    print(f"picture     {picture}")
    print(f"report      {trained['report'] or 'not written'}")
    store = Path(recipe.storage) / "mlflow.db"
    print(
        "\nNext:\n"
        f"  python jobs/predict.py --model {model} --tracking-uri sqlite:///{store} \\\n"
        f"      --images {recipe.storage}/coco/val --out {recipe.storage}/predictions\n"
        f"  python jobs/evaluate.py --truth {recipe.storage}/coco/annotations/instances_val.json "
        f"\\\n      --detections {trained['detections']} --metric boundary\n"
        f"  mlflow ui --backend-store-uri sqlite:///{store}\n"
        "  your own photos: README.md\n"
    )


if __name__ == "__main__":
    run_verb(quickstart)
