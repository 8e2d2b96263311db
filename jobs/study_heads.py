#!/usr/bin/env python
"""Which mask head draws the sharpest masks: all of them at an equal budget, on two cores.

    python jobs/study_heads.py --shards runs/coco_mini --trunk-weights lite0.safetensors

Trains every head on the same photos in the same order, with an ImageNet trunk that stays as it is,
in the boxes of the truth; judges the masks in the boxes of the truth, so that no detector's luck is
in the numbers; and writes a table and a plot. --shards is a folder with the splits train2017 and
val2017 as jobs/ingest.py writes them. A run takes some 20 minutes on a core; what is done stays
done, and a second process with other --seeds or --heads halves the time.
"""

from dataclasses import replace
from pathlib import Path

from bsm.configs.instance import MaskHeadConfig, MaskRCNNConfig
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
    "pointrend": MaskHeadConfig(kind="pointrend"),
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
    trunk_weights: str = "timm",
    out: Path = Path("runs/study_heads"),
    heads: tuple[str, ...] = tuple(HEADS),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = STEPS,
    use_gpu: bool = False,
) -> Result:
    """Train, judge, and lay out what all runs in the folder have given.

    Args:
        shards: folder with the splits train2017 and val2017.
        trunk_weights: of tf_efficientnet_lite0: timm fetches them, or a file.
        out: folder for the runs, table.md and heads.png.
        heads: which to train; the table has all that are done.
        seeds: one run each.
        steps: optimizer steps of a run.
        use_gpu: on the GPU of this machine, in bfloat16 (OptimConfig.amp).
    """
    from pipeline.study import heads as engine

    unknown = [name for name in heads if name not in HEADS]
    if unknown:
        raise RecipeError(
            f"--heads: no head is called {', '.join(unknown)}. There are: {', '.join(HEADS)}"
        )
    recipe = replace(
        RECIPE,
        data=replace(RECIPE.data, root=str(Path(shards).absolute())),
        optim=replace(RECIPE.optim, steps=steps, warmup_steps=round(0.3 * steps)),
        scale=replace(RECIPE.scale, use_gpu=use_gpu),
    )
    recipes = {name: recipe_of(recipe, name, trunk_weights=trunk_weights) for name in HEADS}
    folder = str(out.absolute())
    engine.run_trials({name: recipes[name] for name in heads}, seeds=seeds, out=folder)
    trials = engine.read_trials(recipes, out=folder)
    rows = engine.summarize(trials, heads=tuple(HEADS), reference=REFERENCE)
    table = engine.format_rows(rows, reference=REFERENCE)
    print(table)
    (out / "table.md").write_text(table + "\n")
    title = f"{steps} steps of {recipe.optim.global_batch} images, masks in the boxes of the truth"
    engine.draw_rows(rows, trials, out / "heads.png", title=title)
    return {
        "runs": len(trials),
        "table": str(out / "table.md"),
        "plot": str(out / "heads.png"),
        **{f"boundary_iou_{row.head}": round(row.means["boundary_iou"], 5) for row in rows},
    }


def recipe_of(
    recipe: Recipe[MaskRCNNConfig], head: str, *, trunk_weights: str
) -> Recipe[MaskRCNNConfig]:
    """Give the study's recipe another head, of the study's width."""
    model = recipe.model
    return replace(
        recipe,
        model=replace(
            model,
            backbone=replace(model.backbone, weights=trunk_weights),
            mask_head=replace(HEADS[head], channels=CHANNELS),
        ),
    )


if __name__ == "__main__":
    run_verb(study)
