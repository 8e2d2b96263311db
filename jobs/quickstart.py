#!/usr/bin/env python
"""From nothing to a registered model and its pictures, on a laptop, in minutes.

python jobs/quickstart.py        (or: make quickstart)

Writes the embedded data set as COCO files, ingests it, trains Mask R-CNN with the boundary squeeze
on two workers, measures it on images it has not seen, registers it, pulls it back by its alias and
predicts. Everything lands in runs/quickstart; a second call goes on where the first one stopped.
"""

import contextlib
import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig, ProposalConfig
from bsm.configs.shared import FpnBackboneConfig, GuidedFlowConfig
from pipeline.cli import Result, run_verb
from pipeline.recipe import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    Recipe,
    ScaleConfig,
    TrackingConfig,
)

# The paper's model made small: images of 128 px, from scratch, in about three minutes on two cores.
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

SHOWN_IMAGES = 4
SHOWN_OBJECTS = 3
"""The picture shows the first so many held-out images with at least so many objects."""


def quickstart(
    *,
    out: Path = Path("runs/quickstart"),
    steps: int = RECIPE.optim.steps,
    train_images: int = 1000,
    val_images: int = 60,
    num_workers: int = RECIPE.scale.num_workers,
) -> Result:
    """Generate, ingest, train, evaluate, register, pull back, predict and draw.

    Args:
        out: folder for all of it; delete it to start over.
        steps: optimizer steps of the training.
        train_images: images to generate for training.
        val_images: images to generate for evaluation.
        num_workers: Ray Train workers; 0 works in this process, without Ray.
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
    clock.begin("predict", f"pull {MODEL}, as anyone would, and draw")
    picture = _predict(recipe, images / "val", truth=images / "annotations" / "instances_val.json")
    clock.end()
    # The training phase in its own parts: check, train, evaluate, register.
    phases = clock.phases | trained["seconds_by_phase"]
    _print_summary(recipe, trained, phases=phases, seconds=clock.seconds, picture=picture)
    return {
        **trained,
        "seconds": round(clock.seconds, 1),
        "seconds_by_phase": {name: round(value, 1) for name, value in phases.items()},
        "picture": str(picture),
    }


class _Clock:
    """Prints a line at the start of each phase, with the time since the beginning."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._phase = ""
        self._phase_begin = 0.0
        self.phases: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def begin(self, phase: str, what: str) -> None:
        self.end()
        self._phase, self._phase_begin = phase, self.seconds
        print(f"\n[{_clock_time(self.seconds)}] {phase.upper()}: {what}")

    def end(self) -> None:
        if self._phase:
            self.phases[self._phase] = self.seconds - self._phase_begin
        self._phase = ""


def _generate(root: Path, *, train_images: int, val_images: int) -> None:
    from pipeline.data.sources.shapes import write_shapes

    made = write_shapes(root, train_images=train_images, val_images=val_images)
    print(f"{made['images']} images, {made['annotations']} annotations, as COCO lays them out")


def _ingest(root: Path, recipe: Recipe) -> None:
    from pipeline.data.ingest import CocoIngest, ingest_coco

    on_ray = recipe.scale.num_workers > 0
    if on_ray:
        from pipeline.training.capacity import start_ray

        start_ray(recipe)
    for split in (recipe.data.train_split, recipe.data.val_split):
        ingest_coco(
            CocoIngest(
                root=str(root),
                split=split,
                out=f"{recipe.data.root}/{split}",
                workers=-1 if on_ray else 0,
            )
        )


def _train(recipe: Recipe) -> Result:
    from pipeline.training import launch

    return launch.run(recipe)


def _predict(recipe: Recipe, images: Path, *, truth: Path) -> Path:
    """Use the registered model as anyone would, and draw what it finds beside the truth."""
    from pycocotools.coco import COCO

    from pipeline.registry.predict import pull
    from pipeline.report.boundary_picture import Panel, boundary_picture
    from pipeline.report.draw import shape, shapes_of
    from pipeline.serving.photos import read_photo

    pulled = pull(MODEL, storage_uri=recipe.storage)
    print(f"loaded {pulled.uri}")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
    index = {each.category_id: each for each in pulled.categories}
    crowded = [i for i in sorted(coco.imgs) if len(coco.getAnnIds(i)) >= SHOWN_OBJECTS]
    panels = []
    for image_id in crowded[:SHOWN_IMAGES]:
        name = coco.imgs[image_id]["file_name"]
        photo = read_photo(images / name, name=name)
        table: Any = pulled.model.predict([photo])
        found = table.to_dict("records")
        true = [(coco.annToRLE(a), index[a["category_id"]]) for a in coco.imgToAnns[image_id]]
        panels.append(
            Panel(
                name,
                photo,
                [shape(rle, category_index=c.category_index, name=c.name) for rle, c in true],
                shapes_of(found),
            )
        )
        print(f"{name}: {len(found)} objects found, {len(true)} there")
    picture = Path(recipe.storage) / "quickstart.png"
    boundary_picture(panels, picture)
    return picture


def _print_summary(
    recipe: Recipe,
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
    parts = ", ".join(f"{name} {_clock_time(value)}" for name, value in phases.items())
    print(f"\ntime        {_clock_time(seconds)}: {parts}")
    print(f"picture     {picture}")
    store = Path(recipe.storage) / "mlflow.db"
    print(
        "\nNext:\n"
        f"  python jobs/predict.py --model {MODEL} --tracking-uri sqlite:///{store} \\\n"
        f"      --images {recipe.storage}/coco/val --out {recipe.storage}/predictions\n"
        f"  python jobs/evaluate.py --truth {recipe.storage}/coco/annotations/instances_val.json "
        f"\\\n      --detections {trained['detections']} --metric boundary\n"
        f"  mlflow ui --backend-store-uri sqlite:///{store}\n"
        "  your own photos: README.md\n"
    )


def _clock_time(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    run_verb(quickstart)
