#!/usr/bin/env python
"""Compare mask heads at an equal training budget, on one CPU core.

    python jobs/study_heads.py --shards runs/coco_mini --backbone-weights lite0.pth --steps 400

Trains every head on the same photos in the same order, with a frozen ImageNet backbone and the
ground truth boxes; evaluates the masks in the ground truth boxes, so that no detector affects the
numbers; and writes tables and a plot, with the quality that masks of each size can reach. --shards
is a folder with both splits, as written by jobs/ingest.py (--train-split and --val-split name
them). The features of the backbone are computed once and kept in OUT/features (about 1.6 MB for
each image and its mirror image). Finished runs are kept, and a second process with other --seeds or
--heads halves the time.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from bsm.configs.instance import (
    FineStagesConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    PointRendConfig,
)
from bsm.configs.shared import (
    FpnBackboneConfig,
    GuidedFlowConfig,
    LossWeights,
    SqueezeConfig,
    TargetConfig,
)
from pipeline.cli import Result, run_verb
from pipeline.errors import RecipeError
from pipeline.recipe import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    Recipe,
    ScaleConfig,
    TrackingConfig,
)

if TYPE_CHECKING:
    from pipeline.study.heads import StudyRefiner

CHANNELS = 96
STEPS = 800

WIDE_CHANNELS = 170
"""A plain head of this width has about as many parameters as bsm-no-warp."""

RECIPE = Recipe(
    name="head",
    model=MaskRCNNConfig(
        num_classes=80,
        trains="masks",
        backbone=FpnBackboneConfig(
            name="tf_efficientnet_lite0",
            weights="timm",
            norm="frozen",
            freeze_at=5,
            fpn_channels=CHANNELS,
            pixel_mean=(127.0, 127.0, 127.0),
            pixel_std=(128.0, 128.0, 128.0),
        ),
    ),
    data=DataConfig(short_edge_px=(320,), test_short_edge_px=320, long_edge_px=533),
    optim=OptimConfig(
        optimizer="adamw",
        global_batch=4,
        lr_per_image=1e-3 / 4,
        weight_decay=0.01,
        steps=STEPS,
        schedule="cosine",
        warmup_steps=round(0.3 * STEPS),
        warmup_factor=0.04,
    ),
    scale=ScaleConfig(num_workers=0, images_per_microbatch=4, threads_per_worker=1),
    checkpoint=CheckpointConfig(every_steps=200, keep=1),
    evaluation=EvaluationConfig(boxes="truth"),
    tracking=TrackingConfig(experiment="study_heads", log_every=50),
)

GUIDED = GuidedFlowConfig(weight=0.5)
NO_WARP = SqueezeConfig(warp="none")
LIGHT = SqueezeConfig(variant="light", warp="none")
FINE = FineStagesConfig(channels=(48, 24))
MASK_ONLY = LossWeights(boundary=0.0, contraction=0.0, expansion=0.0)

HEADS = {
    "plain": MaskHeadConfig(kind="plain"),
    "bmask": MaskHeadConfig(kind="bmask"),
    "pointrend": MaskHeadConfig(
        kind="pointrend",
        # As 1,024 to the published width of 256.
        pointrend=PointRendConfig(coarse_hidden=4 * CHANNELS),
        # Its masks are 224 x 224 at inference, finer than the field.
        targets=TargetConfig(source="roi"),
    ),
    "bsm-released": MaskHeadConfig(squeeze=SqueezeConfig(initialization="released")),
    "bsm": MaskHeadConfig(),
    "bsm-no-warp": MaskHeadConfig(squeeze=NO_WARP),
    "bsm-guided": MaskHeadConfig(guided_flow=GUIDED),
    "bsm-guided-roi": MaskHeadConfig(guided_flow=GUIDED, targets=TargetConfig(source="roi")),
    "light": MaskHeadConfig(squeeze=SqueezeConfig(variant="light")),
    "light-no-warp": MaskHeadConfig(squeeze=LIGHT),
    "light-guided": MaskHeadConfig(squeeze=SqueezeConfig(variant="light"), guided_flow=GUIDED),
    # With finer last stages.
    "plain-fine": MaskHeadConfig(kind="plain", fine_stages=FINE),
    "bmask-fine": MaskHeadConfig(kind="bmask", fine_stages=FINE),
    "bsm-no-warp-fine": MaskHeadConfig(squeeze=NO_WARP, fine_stages=FINE),
    "bsm-guided-fine": MaskHeadConfig(guided_flow=GUIDED, fine_stages=FINE),
    "light-fine": MaskHeadConfig(squeeze=LIGHT, fine_stages=FINE),
    "light-fine-band": MaskHeadConfig(squeeze=LIGHT, fine_stages=replace(FINE, boundary_band=2)),
    "light-fine-112": MaskHeadConfig(
        squeeze=LIGHT,
        fine_stages=replace(FINE, large_channels=12),
        # Finer than the field.
        targets=TargetConfig(source="roi"),
    ),
    # Controls: what of the gain is depth, parameters, the fine feature, or the boundary losses?
    "plain-8-convs": MaskHeadConfig(kind="plain", num_convs=8),
    "plain-wide": MaskHeadConfig(kind="plain", channels=WIDE_CHANNELS),
    "bmask-mask-loss": MaskHeadConfig(kind="bmask", loss_weights=MASK_ONLY),
    "bsm-no-warp-mask-loss": MaskHeadConfig(squeeze=NO_WARP, loss_weights=MASK_ONLY),
    "bsm-no-warp-no-p2": MaskHeadConfig(squeeze=SqueezeConfig(warp="none", fine_features=False)),
}

REFERENCE = "bmask"


def study(  # noqa: PLR0913  the flags, all by name
    *,
    shards: str,
    backbone_weights: Annotated[str, tyro.conf.arg(aliases=("--trunk-weights",))] = "timm",
    train_split: str = "train2017",
    val_split: str = "val2017",
    out: Path = Path("runs/study_heads"),
    heads: tuple[str, ...] = tuple(HEADS),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = STEPS,
    refiner: str = "",
    tracking_uri: str = "",
    use_gpu: bool = False,
    bfloat16: bool = False,
) -> Result:
    """Train and measure the heads, and summarize all runs in the folder.

    Args:
        shards: folder with the two splits.
        backbone_weights: of tf_efficientnet_lite0: "timm" downloads them, or a file.
        train_split: folder under shards to train on.
        val_split: folder under shards to measure on.
        out: folder for the runs, the features, table.md and heads.png.
        heads: heads to train; the tables have all finished runs. Without any, nothing is trained.
        seeds: one run each.
        steps: optimizer steps of a run.
        refiner: models:/NAME@champion of a refiner: its masks of every head are measured too.
        tracking_uri: registry of the refiner; by default MLFLOW_TRACKING_URI, or else the embedded
            store runs/mlflow.db.
        use_gpu: use the GPU of this machine, in bfloat16.
        bfloat16: train in bfloat16 on a CPU too, which is faster if it has AMX.
    """
    from pipeline.data.manifest import read_manifest
    from pipeline.study import heads as engine
    from pipeline.study import summary
    from pipeline.study.ceilings import load_ceilings

    unknown = [name for name in heads if name not in HEADS]
    if unknown:
        raise RecipeError(
            f"--heads: unknown head {', '.join(unknown)}. Known heads: {', '.join(HEADS)}"
        )
    root = str(Path(shards).absolute())
    recipe = replace(
        RECIPE,
        model=replace(
            RECIPE.model, num_classes=len(read_manifest(f"{root}/{train_split}").categories)
        ),
        data=replace(RECIPE.data, root=root, train_split=train_split, val_split=val_split),
        optim=replace(
            RECIPE.optim,
            steps=steps,
            warmup_steps=round(0.3 * steps),
            amp=use_gpu or bfloat16,
        ),
        scale=replace(RECIPE.scale, use_gpu=use_gpu),
    )
    recipes = {name: with_head(recipe, name, backbone_weights=backbone_weights) for name in HEADS}
    folder = out.absolute()
    engine.train_heads(
        {name: recipes[name] for name in heads},
        seeds=seeds,
        out=folder,
        cache=folder / "features",
        refiner=load_study_refiner(refiner, tracking_uri, use_gpu=use_gpu) if refiner else None,
    )
    runs = engine.read_runs(recipes, out=folder)
    ceilings = load_ceilings(
        folder / "ceilings.json", split_uri=f"{root}/{val_split}", data=recipe.data
    )
    tables = (
        summary.format_table(runs, heads=tuple(HEADS)),
        summary.format_gains(runs, heads=tuple(HEADS), reference=REFERENCE),
        summary.format_table(ceilings, heads=[run.head for run in ceilings]),
    )
    table = "\n\n".join(tables)
    print(table)
    (out / "table.md").write_text(table + "\n")
    title = f"{steps} steps of {recipe.optim.global_batch} images, masks in the ground truth boxes"
    summary.draw_plot(runs, out / "heads.png", heads=tuple(HEADS), title=title)
    return {
        "runs": len(runs),
        "table": str(out / "table.md"),
        "plot": str(out / "heads.png"),
        **{
            f"boundary_iou_{head}": round(
                sum(run.mean("boundary", "all") for run in own) / len(own), 5
            )
            for head, own in summary.find_heads(runs, tuple(HEADS)).items()
        },
    }


def load_study_refiner(uri: str, tracking_uri: str, *, use_gpu: bool) -> "StudyRefiner":
    """Load a registered refiner."""
    from pipeline.registry.predict import load_refiner
    from pipeline.study.heads import study_refiner

    found = load_refiner(uri, tracking=tracking_uri)
    return study_refiner(found.model.to("cuda" if use_gpu else "cpu"), found.uri)


def with_head(
    recipe: Recipe[MaskRCNNConfig], head: str, *, backbone_weights: str
) -> Recipe[MaskRCNNConfig]:
    """Return the recipe with another head, of the study's width."""
    model = recipe.model
    return replace(
        recipe,
        model=replace(
            model,
            backbone=replace(model.backbone, weights=backbone_weights),
            mask_head=_set_width(HEADS[head]),
        ),
    )


def _set_width(head: MaskHeadConfig) -> MaskHeadConfig:
    return head if head.channels == WIDE_CHANNELS else replace(head, channels=CHANNELS)


if __name__ == "__main__":
    run_verb(study)
