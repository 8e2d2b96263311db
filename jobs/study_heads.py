#!/usr/bin/env python
"""Compare mask heads at an equal training budget, on two CPU cores.

    python jobs/study_heads.py --shards runs/coco_mini --backbone-weights lite0.safetensors

Trains every head on the same photos in the same order, with a frozen ImageNet backbone and the
ground truth boxes; evaluates the masks in the ground truth boxes, so that no detector affects the
numbers; and writes a table and a plot. --shards is a folder with the splits train2017 and val2017
as written by jobs/ingest.py. A run takes about 20 minutes on one core. Finished runs are kept, and
a second process with other --seeds or --heads halves the time.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from bsm.configs.instance import MaskHeadConfig, MaskRCNNConfig, PointRendConfig
from bsm.configs.shared import FpnBackboneConfig, GuidedFlowConfig, SqueezeConfig, TargetConfig
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

CHANNELS = 96
STEPS = 800

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
    "bsm-no-warp": MaskHeadConfig(squeeze=SqueezeConfig(warp="none")),
    "bsm-guided": MaskHeadConfig(guided_flow=GUIDED),
    "bsm-guided-roi": MaskHeadConfig(guided_flow=GUIDED, targets=TargetConfig(source="roi")),
    "light": MaskHeadConfig(squeeze=SqueezeConfig(variant="light")),
    "light-guided": MaskHeadConfig(squeeze=SqueezeConfig(variant="light"), guided_flow=GUIDED),
}

REFERENCE = "bmask"


def study(
    *,
    shards: str,
    backbone_weights: Annotated[str, tyro.conf.arg(aliases=("--trunk-weights",))] = "timm",
    out: Path = Path("runs/study_heads"),
    heads: tuple[str, ...] = tuple(HEADS),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = STEPS,
    use_gpu: bool = False,
) -> Result:
    """Train and evaluate the heads, and summarize all runs in the folder.

    Args:
        shards: folder with the splits train2017 and val2017.
        backbone_weights: of tf_efficientnet_lite0: "timm" downloads them, or a file.
        out: folder for the runs, table.md and heads.png.
        heads: heads to train; the table has all finished runs.
        seeds: one run each.
        steps: optimizer steps of a run.
        use_gpu: use the GPU of this machine, in bfloat16 (OptimConfig.amp).
    """
    from pipeline.study import heads as engine

    unknown = [name for name in heads if name not in HEADS]
    if unknown:
        raise RecipeError(
            f"--heads: unknown head {', '.join(unknown)}. Known heads: {', '.join(HEADS)}"
        )
    recipe = replace(
        RECIPE,
        data=replace(RECIPE.data, root=str(Path(shards).absolute())),
        optim=replace(RECIPE.optim, steps=steps, warmup_steps=round(0.3 * steps)),
        scale=replace(RECIPE.scale, use_gpu=use_gpu),
    )
    recipes = {name: with_head(recipe, name, backbone_weights=backbone_weights) for name in HEADS}
    folder = str(out.absolute())
    engine.train_heads({name: recipes[name] for name in heads}, seeds=seeds, out=folder)
    runs = engine.read_runs(recipes, out=folder)
    summaries = engine.summarize(runs, heads=tuple(HEADS), reference=REFERENCE)
    table = engine.format_summaries(summaries, reference=REFERENCE)
    print(table)
    (out / "table.md").write_text(table + "\n")
    title = f"{steps} steps of {recipe.optim.global_batch} images, masks in the ground truth boxes"
    engine.draw_summaries(summaries, runs, out / "heads.png", title=title)
    return {
        "runs": len(runs),
        "table": str(out / "table.md"),
        "plot": str(out / "heads.png"),
        **{f"boundary_iou_{row.head}": round(row.means["boundary_iou"], 5) for row in summaries},
    }


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
            mask_head=replace(HEADS[head], channels=CHANNELS),
        ),
    )


if __name__ == "__main__":
    run_verb(study)
