"""Every recipe holds the paper's hyper-parameters, and differs from its control in one thing."""

import importlib
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.semantic import DeepLabConfig
from bsm.configs.shared import SqueezeConfig
from jobs import ablation_coco_r50, lvis_star
from jobs.coco_r50 import RECIPE as R50
from pipeline.recipe import Recipe, differences

JOBS = Path(__file__).parents[2] / "jobs"

COCO_EDGES = (640, 672, 704, 736, 768, 800)
STREET_EDGES = (800, 832, 864, 896, 928, 960, 992, 1024)

TRUNKS = {"r50": "resnet50", "r101": "resnet101", "x101": "resnext101_64x4d"}


class Schedule(NamedTuple):
    """What sec. 4.1 and 4.2 say of a data set, or detectron2 of 1x and 3x."""

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
    trunk: str
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
}

LVIS_STAR = {
    f"lvis_star_{trunk}{suffix}": Row(COCO_1X, trunk, head)
    for trunk in ("r50", "r101")
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
    f"{job}{suffix}": Row(schedule, trunk, head, edges=())
    for job, schedule, trunk in (
        ("cityscapes_semantic_r50", STREET_MAPS, "r50"),
        ("cityscapes_semantic_r101", STREET_MAPS, "r101"),
        ("bdd_r50", BDD_MAPS, "r50"),
    )
    for suffix, head in (("", "squeeze"), ("_plain", "plain"), ("_pointrend", "pointrend"))
}

INSTANCE = COCO | LVIS_STAR | CITYSCAPES


def recipe_of(name: str) -> Recipe:
    if name in LVIS_STAR:
        return lvis_star.RECIPES[name.removeprefix("lvis_star_").replace("_", "-")]
    return importlib.import_module(f"jobs.{name}").RECIPE


def experiments() -> set[str]:
    """Files that declare one recipe of the paper, or of ours at its scale."""
    sources = {path.stem: path.read_text() for path in JOBS.glob("*.py")}
    return {name for name, text in sources.items() if "\n    main(RECIPE)" in text}


def test_every_recipe_stands_in_the_table_and_in_the_readme() -> None:
    tabled = (COCO | CITYSCAPES | SEMANTIC).keys()
    assert experiments() == tabled
    listed = re.findall(r"\[(\w+)\.py\]\((\w+)\.py\)", (JOBS / "README.md").read_text())
    assert all(text == link for text, link in listed)
    names = [link for _, link in listed]
    assert sorted(names) == sorted([*tabled, "ablation_coco_r50", "lvis_star", "sweep_coco_r50"])
    assert {r.name for r in lvis_star.RECIPES.values()} == LVIS_STAR.keys()


@pytest.mark.parametrize("name", sorted(INSTANCE | SEMANTIC))
def test_a_recipe_trains_as_the_paper_says(name: str) -> None:
    recipe, row = recipe_of(name), (INSTANCE | SEMANTIC)[name]
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
        TRUNKS[row.trunk],
        "timm",
    )
    assert recipe.data.flip_probability == 0.5
    assert not recipe.data.color.is_on
    assert recipe.tracking.model_name


@pytest.mark.parametrize("name", sorted(INSTANCE))
def test_an_instance_recipe_has_the_sizes_and_the_model_of_its_row(name: str) -> None:
    recipe, row = recipe_of(name), INSTANCE[name]
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
    ours = name in {"coco_r50_guided", "coco_r50_light"}
    assert model.mask_head.guided_flow.weight == (0.5 if ours else 0)
    assert model.mask_head.squeeze == SqueezeConfig(
        variant="light" if name == "coco_r50_light" else "released"
    )
    assert (recipe.optim.schedule, recipe.optim.decay_factor) == ("multistep", 0.1)
    assert (
        data.val_split
        == {True: "lvis-star", False: "val" if street else "val2017"}[name in LVIS_STAR]
    )
    assert recipe.evaluation.submission == street


@pytest.mark.parametrize("name", sorted(SEMANTIC))
def test_a_semantic_recipe_has_the_sizes_and_the_model_of_its_row(name: str) -> None:
    recipe, row = recipe_of(name), SEMANTIC[name]
    model, data = recipe.model, recipe.data
    assert isinstance(model, DeepLabConfig)
    assert (data.scale_range, data.crop_px) == ((0.75, 2.0), 832)
    assert (recipe.optim.schedule, recipe.optim.poly_power) == ("poly", 0.9)
    assert (model.num_classes, model.output_stride) == (19, 8)
    assert (model.backbone.norm, model.backbone.freeze_at) == ("sync", 0)
    assert (model.head.kind, model.head.targets.kernel_size) == (row.head, 15)
    assert model.head.guided_flow.weight == 0
    assert model.head.cross_entropy.kind == "plain"
    assert recipe.evaluation.radii_px == (3, 5, 9, 12)


CONTROL = re.compile("(.+)_(plain|pointrend|bmask)")


@pytest.mark.parametrize("name", sorted(filter(CONTROL.fullmatch, INSTANCE | SEMANTIC)))
def test_a_control_differs_from_the_squeeze_in_its_head_alone(name: str) -> None:
    squeeze = name.rpartition("_")[0]
    changed = {line.partition(":")[0] for line in differences(recipe_of(squeeze), recipe_of(name))}
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


def test_an_ablation_changes_one_thing_and_is_listed_in_its_docstring() -> None:
    assert ablation_coco_r50.RECIPES.keys() == ABLATIONS.keys()
    # Names and AP behind the letter of each part of the table.
    told = re.findall(r"^    [a-e6]  (.+)$", ablation_coco_r50.__doc__ or "", re.MULTILINE)
    words = re.findall(
        r"[a-z][a-z0-9-]*-[a-z0-9-]+|\b(?:boundary|contraction|expansion|bce|dgmn|dcnv2)\b",
        " ".join(told),
    )
    assert sorted(words) == sorted(ABLATIONS)
    for row, recipe in ablation_coco_r50.RECIPES.items():
        changed = dict(line.split(": ", 1) for line in differences(R50, recipe))
        assert changed.pop("name").endswith(f'"{recipe.name}"')
        assert changed.pop("tracking.model_name").endswith('""')
        assert {key: value.split(" -> ")[1] for key, value in changed.items()} == ABLATIONS[row]


@pytest.mark.parametrize("name", sorted(INSTANCE | SEMANTIC))
def test_a_docstring_tells_the_papers_number_or_that_it_is_ours(name: str) -> None:
    if name in LVIS_STAR:
        return
    text = " ".join((importlib.import_module(f"jobs.{name}").__doc__ or "").split())
    assert "Not yet run at full scale by us." in text
    ours = "Ours: not in the paper" in text
    assert ours == (name in {"coco_r50_guided", "coco_r50_light"})
    assert ours or re.search(r"The paper reports (mask )?(AP|mIoU) \d\d\.\d.*\(Table [1-5]f?", text)
