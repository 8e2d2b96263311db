"""Every recipe holds the paper's hyper-parameters, and differs from its control in one thing."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bsm.configs.instance import FineStagesConfig, MaskRCNNConfig
from bsm.configs.semantic import DeepLabConfig
from bsm.configs.shared import SqueezeConfig
from jobs import (
    ablation_coco_r50,
    experiments,
    quickstart,
    study_heads,
    sweep_coco_r50,
    sweep_quickstart,
)
from jobs.coco_r50 import RECIPE as R50
from pipeline.recipe import differences
from pipeline.recipe_json import leaves, to_plain

ROOT = Path(__file__).parents[2]
OLD_RECIPES = ROOT / "tests" / "fixtures" / "recipes_before_renames.zip"

COCO_EDGES = (640, 672, 704, 736, 768, 800)
STREET_EDGES = (800, 832, 864, 896, 928, 960, 992, 1024)

BACKBONES = {"r50": "resnet50", "r101": "resnet101", "x101": "resnext101_64x4d"}


class Schedule(NamedTuple):
    """The schedule of a data set in sec. 4.1 and 4.2, or of 1x and 3x in detectron2."""

    batch: int
    lr: float
    weight_decay: float
    steps: int
    decay_at: tuple[int, ...]
    warmup_steps: int = 1000


COCO_1X = Schedule(16, 0.02, 1e-4, 90_000, (60_000, 80_000))
COCO_3X = Schedule(16, 0.02, 1e-4, 270_000, (210_000, 250_000))
STREETS = Schedule(8, 0.01, 1e-4, 24_000, (18_000,))
# 100 epochs of 2,975 and of 7,000 images.
STREET_MAPS = Schedule(8, 0.01, 5e-4, 37_188, (), 0)
BDD_MAPS = Schedule(8, 0.01, 5e-4, 87_500, (), 0)


class Row(NamedTuple):
    """A row of one of the paper's tables."""

    schedule: Schedule
    backbone: str
    head: str = "squeeze"
    cascade: bool = False
    edges: tuple[int, ...] = COCO_EDGES


COCO = {
    "coco_r50": Row(COCO_1X, "r50"),
    "coco_r50_plain": Row(COCO_1X, "r50", "plain"),
    "coco_r50_pointrend": Row(COCO_1X, "r50", "pointrend"),
    "coco_r50_bmask": Row(COCO_1X, "r50", "bmask"),
    "coco_r101": Row(COCO_1X, "r101"),
    "coco_r101_plain": Row(COCO_1X, "r101", "plain"),
    "coco_r101_bmask": Row(COCO_1X, "r101", "bmask"),
    "coco_x101": Row(COCO_1X, "x101"),
    "coco_x101_plain": Row(COCO_1X, "x101", "plain"),
    "coco_r50_800px": Row(COCO_1X, "r50", edges=(800,)),
    "coco_r50_800px_plain": Row(COCO_1X, "r50", "plain", edges=(800,)),
    "coco_r50_3x": Row(COCO_3X, "r50"),
    "coco_r50_3x_plain": Row(COCO_3X, "r50", "plain"),
    "coco_r101_3x": Row(COCO_3X, "r101"),
    "coco_x101_3x": Row(COCO_3X, "x101"),
    "coco_cascade_r50": Row(COCO_1X, "r50", cascade=True),
    "coco_cascade_r50_plain": Row(COCO_1X, "r50", "plain", cascade=True),
    "coco_cascade_r50_bmask": Row(COCO_1X, "r50", "bmask", cascade=True),
    "coco_cascade_r101_3x": Row(COCO_3X, "r101", cascade=True),
    "coco_cascade_r101_3x_bmask": Row(COCO_3X, "r101", "bmask", cascade=True),
    # Ours, on the paper's schedule.
    "coco_r50_guided": Row(COCO_1X, "r50"),
    "coco_r50_light": Row(COCO_1X, "r50"),
    "coco_r50_fine": Row(COCO_1X, "r50"),
}

LVIS_STAR = {
    f"lvis_star_{backbone}{suffix}": Row(COCO_1X, backbone, head)
    for backbone in ("r50", "r101")
    for suffix, head in (
        ("", "squeeze"),
        ("_plain", "plain"),
        ("_pointrend", "pointrend"),
        ("_bmask", "bmask"),
    )
}

CITYSCAPES = {
    name.replace("lvis_star", "cityscapes"): row._replace(schedule=STREETS, edges=STREET_EDGES)
    for name, row in LVIS_STAR.items()
}

SEMANTIC = {
    f"{job}{suffix}": Row(schedule, backbone, head, edges=())
    for job, schedule, backbone in (
        ("cityscapes_semantic_r50", STREET_MAPS, "r50"),
        ("cityscapes_semantic_r101", STREET_MAPS, "r101"),
        ("bdd_r50", BDD_MAPS, "r50"),
    )
    for suffix, head in (("", "squeeze"), ("_plain", "plain"), ("_pointrend", "pointrend"))
}

INSTANCE = COCO | LVIS_STAR | CITYSCAPES

TARGET_SOURCE = "model.mask_head.targets.source"
"""Changed on purpose: rows of the paper take the released code's targets, "roi". Before, they took
ours, "field", whose boundary is another at a RoI's border. A run of an earlier recipe still
resumes: python jobs/train.py runs/NAME/recipe.json"""

NO_FINE_STAGES = {
    f"model.mask_head.fine_stages.{name}": value
    for name, value in leaves(to_plain(FineStagesConfig())).items()
}

ADDED_FIELDS: dict[str, Any] = {
    "weights_mirror": "",
    "data.scale_jitter": None,
    "data.copy_paste": 0.0,
    **{f"data.robust.{name}": 0.0 for name in ("gray", "blur", "jpeg", "cutout")},
    "optim.ema_decay": 0.0,
    "optim.compile": False,
    "optim.decay_biases": True,
    "optim.backbone_lr_factor": 1.0,
    "optim.layer_decay": 1.0,
    "scale.activation_checkpointing": False,
    "checkpoint.best_metric": "",
    "checkpoint.patience": 0,
    "evaluation.losses": False,
    "evaluation.flip": False,
    "evaluation.scales": [1.0],
    "model.weights_categories": [],
    "model.head_norm": "none",
    "model.proposals.num_convs": 1,
    "model.box_head.num_convs": 0,
    "model.box_head.num_fcs": 2,
}
"""Fields that there were not when each row was a file, with what they were before."""

OURS = {"coco_r50_guided", "coco_r50_light", "coco_r50_fine"}

ADDED = {"coco_r50_fine"}
"""Rows that there were not when each row was a file."""

ROWS = {row.recipe.name: row for job in experiments.JOBS for row in job.ROWS.values()}
RECIPES = {name: row.recipe for name, row in ROWS.items()}


def old_recipes() -> dict[str, dict[str, Any]]:
    """Recipes of every job when each row was a file, flat, with today's names of fields."""
    renamed = {
        "model.geometry": "model.box_convention",
        "model.mask_head.squeeze.wiring": "model.mask_head.squeeze.variant",
        "model.head.squeeze.wiring": "model.head.squeeze.variant",
        "scale.images_per_pass": "scale.images_per_microbatch",
        "evaluation.images_per_pass": "evaluation.images_per_batch",
    }
    with zipfile.ZipFile(OLD_RECIPES) as archive:
        plain = json.loads(archive.read("recipes.json"))
    return {
        job: {renamed.get(field, field): value for field, value in leaves(recipe).items()}
        for job, recipe in plain.items()
    }


def test_every_old_job_is_a_row_with_an_equal_recipe() -> None:
    others = {
        "quickstart": quickstart.RECIPE,
        "study_heads": study_heads.RECIPE,
        "sweep_coco_r50": sweep_coco_r50.SWEEP.recipe,
        "sweep_quickstart": sweep_quickstart.SWEEP.recipe,
    }
    old = old_recipes()
    assert len(old) == len(RECIPES) - len(ADDED) + len(others)
    for job, recipe in old.items():
        # "ablation_coco_r50 no-warp" is the run ablation_coco_r50_no_warp.
        now = others.get(job) or RECIPES[re.sub("[ -]", "_", job)]
        plain = leaves(to_plain(now))
        expected = dict(recipe)
        if "model.output_stride" in recipe:
            expected["model.dilate_first_blocks"] = False  # added later
        expected |= {name: value for name, value in ADDED_FIELDS.items() if name in plain}
        if TARGET_SOURCE in recipe:
            expected |= NO_FINE_STAGES  # added later
        if job not in OURS | {"quickstart", "study_heads", "sweep_quickstart"}:
            expected |= {TARGET_SOURCE: "roi"} if TARGET_SOURCE in recipe else {}
        assert plain == expected, job


def test_a_row_is_named_after_its_file_and_its_head() -> None:
    for job in experiments.JOBS:
        file = job.__name__.rpartition(".")[2]
        for name, row in job.ROWS.items():
            suffix = "" if name == "squeeze" else f"_{name.replace('-', '_')}"
            if job is ablation_coco_r50 and name == "squeeze":
                assert row.recipe == R50
            else:
                assert row.recipe.name == file + suffix


def test_every_job_with_rows_is_an_experiment() -> None:
    declared = {
        path.stem for path in (ROOT / "jobs").glob("*.py") if "main(ROWS)" in path.read_text()
    }
    assert declared == {job.__name__.rpartition(".")[2] for job in experiments.JOBS}
    ablations = {f"ablation_coco_r50_{name.replace('-', '_')}" for name in ABLATIONS}
    assert RECIPES.keys() == INSTANCE.keys() | SEMANTIC.keys() | ablations


def test_the_committed_page_is_the_generated_one() -> None:
    fix = "type: python jobs/experiments.py --write-readme"
    assert experiments.README.read_text() == experiments.format_readme(), fix


def test_only_our_rows_and_the_kernel_sizes_have_no_number_of_the_paper() -> None:
    without = {name for name, row in ROWS.items() if not row.papers}
    assert without == OURS | {f"ablation_coco_r50_kernel_{size}" for size in (3, 7, 9, 11)}
    assert all(paper.numbers() for row in ROWS.values() for paper in row.papers)


def test_the_paper_has_no_control_above_the_squeeze() -> None:
    compared = 0
    for name in filter(CONTROL.fullmatch, ROWS):
        for paper in ROWS[name].papers:
            for squeeze in ROWS[name.rpartition("_")[0]].papers:
                if (squeeze.table, squeeze.split) == (paper.table, paper.split):
                    best = squeeze.numbers()
                    assert all(best[key] >= value for key, value in paper.numbers().items()), name
                    compared += 1
    assert compared == sum(len(ROWS[name].papers) for name in filter(CONTROL.fullmatch, ROWS))


@pytest.mark.parametrize("name", sorted(INSTANCE | SEMANTIC))
def test_a_recipe_trains_as_the_paper_says(name: str) -> None:
    recipe, row = RECIPES[name], (INSTANCE | SEMANTIC)[name]
    optim, schedule = recipe.optim, row.schedule
    assert recipe.name == name
    assert (optim.optimizer, optim.momentum) == ("sgd", 0.9)
    assert (optim.global_batch, optim.lr) == (schedule.batch, pytest.approx(schedule.lr))
    assert optim.weight_decay == schedule.weight_decay
    assert (optim.steps, optim.decay_at) == (schedule.steps, schedule.decay_at)
    assert (optim.warmup_steps, optim.warmup_factor) == (schedule.warmup_steps, 1e-3)
    # "All models are trained using 8 GPUs", batches of 16 with two images each.
    assert (recipe.scale.num_workers, recipe.scale.use_gpu) == (8, True)
    assert recipe.scale.images_per_microbatch == schedule.batch // 8
    assert (recipe.model.backbone.name, recipe.model.backbone.weights) == (
        BACKBONES[row.backbone],
        "timm",
    )
    assert recipe.data.flip_probability == 0.5
    assert not recipe.data.color.is_on
    assert recipe.tracking.model_name


@pytest.mark.parametrize("name", sorted(INSTANCE))
def test_an_instance_recipe_has_the_sizes_and_the_model_of_its_row(name: str) -> None:
    recipe, row = RECIPES[name], INSTANCE[name]
    model, data, street = recipe.model, recipe.data, name in CITYSCAPES
    assert isinstance(model, MaskRCNNConfig)
    assert data.short_edge_px == row.edges
    assert (data.test_short_edge_px, data.long_edge_px) == ((1024, 2048) if street else (800, 1333))
    assert model.num_classes == (8 if street else 80)
    assert (model.backbone.norm, model.backbone.freeze_at) == ("frozen", 2)
    assert model.mask_head.kind == row.head
    assert model.mask_head.targets.kernel_size == 5
    assert (model.mask_head.train_on, model.mask_head.band_loss) == ("method", "dice")
    assert model.box_head.kind == ("cascade" if row.cascade else "single")
    assert model.proposals.top_k_after_nms == (2000 if row.cascade else 1000)
    ours = name in OURS
    assert model.mask_head.targets.source == ("field" if ours else "roi")
    fine = name == "coco_r50_fine"
    assert model.mask_head.guided_flow.weight == (0.5 if ours and not fine else 0)
    assert model.mask_head.squeeze == SqueezeConfig(
        variant="light" if name == "coco_r50_light" else "released",
        warp="none" if fine else "flow",
    )
    assert model.mask_head.fine_stages.channels == ((48, 24) if fine else ())
    assert (recipe.optim.schedule, recipe.optim.decay_factor) == ("multistep", 0.1)
    assert (
        data.val_split
        == {True: "lvis-star", False: "val" if street else "val2017"}[name in LVIS_STAR]
    )
    assert recipe.evaluation.submission == street


@pytest.mark.parametrize("name", sorted(SEMANTIC))
def test_a_semantic_recipe_has_the_sizes_and_the_model_of_its_row(name: str) -> None:
    recipe, row = RECIPES[name], SEMANTIC[name]
    model, data = recipe.model, recipe.data
    assert isinstance(model, DeepLabConfig)
    assert (data.scale_range, data.crop_px) == ((0.75, 2.0), 832)
    assert (recipe.optim.schedule, recipe.optim.poly_power) == ("poly", 0.9)
    assert (model.num_classes, model.output_stride) == (19, 8)
    assert not model.dilate_first_blocks
    assert (model.backbone.norm, model.backbone.freeze_at) == ("sync", 0)
    assert (model.head.kind, model.head.targets.kernel_size) == (row.head, 15)
    assert model.head.guided_flow.weight == 0
    assert model.head.cross_entropy.kind == "plain"
    assert recipe.evaluation.radii_px == (3, 5, 9, 12)


CONTROL = re.compile("(.+)_(plain|pointrend|bmask)")


@pytest.mark.parametrize("name", sorted(filter(CONTROL.fullmatch, INSTANCE | SEMANTIC)))
def test_a_control_differs_from_the_squeeze_in_its_head_alone(name: str) -> None:
    squeeze = name.rpartition("_")[0]
    changed = {line.partition(":")[0] for line in differences(RECIPES[squeeze], RECIPES[name])}
    kind = "model.mask_head.kind" if name in INSTANCE else "model.head.kind"
    assert changed == {"name", kind, "tracking.model_name"}


SQUEEZE = "model.mask_head.squeeze"

ABLATIONS = {
    "boundary": {f"{SQUEEZE}.branches": '["boundary"]'},
    "contraction": {f"{SQUEEZE}.branches": '["contraction"]'},
    "expansion": {f"{SQUEEZE}.branches": '["expansion"]'},
    "contraction-expansion": {f"{SQUEEZE}.branches": '["contraction", "expansion"]'},
    "bce": {"model.mask_head.band_loss": '"bce"'},
    "weighted-bce": {"model.mask_head.band_loss": '"weighted_bce"'},
    "bce-dice": {"model.mask_head.band_loss": '"bce_dice"'},
    "weighted-bce-dice": {"model.mask_head.band_loss": '"weighted_bce_dice"'},
    "no-fine-features": {f"{SQUEEZE}.fine_features": "false"},
    "no-mask-feature-nor-conv": {
        f"{SQUEEZE}.mask_feature": "false",
        f"{SQUEEZE}.boundary_to_mask": "false",
    },
    "no-boundary-to-mask": {f"{SQUEEZE}.boundary_to_mask": "false"},
    "no-mask-feature": {f"{SQUEEZE}.mask_feature": "false"},
    "no-warp": {f"{SQUEEZE}.warp": '"none"'},
    "dgmn": {f"{SQUEEZE}.warp": '"dgmn"'},
    "dcnv2": {f"{SQUEEZE}.warp": '"dcnv2"'},
    "kernel-3": {"model.mask_head.targets.kernel_size": "3"},
    "kernel-7": {"model.mask_head.targets.kernel_size": "7"},
    "kernel-9": {"model.mask_head.targets.kernel_size": "9"},
    "kernel-11": {"model.mask_head.targets.kernel_size": "11"},
}


def test_an_ablation_changes_one_thing() -> None:
    rows = {name: row for name, row in ablation_coco_r50.ROWS.items() if name != "squeeze"}
    assert rows.keys() == ABLATIONS.keys()
    for name, row in rows.items():
        changed = dict(line.split(": ", 1) for line in differences(R50, row.recipe))
        assert changed.pop("name").endswith(f'"{row.recipe.name}"')
        assert changed.pop("tracking.model_name").endswith('""')
        assert {key: value.split(" -> ")[1] for key, value in changed.items()} == ABLATIONS[name]
