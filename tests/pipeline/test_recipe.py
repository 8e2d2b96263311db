"""Recipes: JSON, fingerprints, old names, and all problems in one error."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.models import without_weights
from bsm.configs.semantic import DeepLabConfig, SemanticHeadConfig
from bsm.configs.shared import BackboneConfig, FpnBackboneConfig
from pipeline.errors import RecipeError
from pipeline.recipe import (
    OLD_NAMES,
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    Recipe,
    ScaleConfig,
    differences,
    fingerprint,
    from_dict,
    from_json,
    to_json,
)

RECIPE = Recipe(
    name="a",
    seed=7,
    model=MaskRCNNConfig(num_classes=5, backbone=FpnBackboneConfig(name="resnet18")),
    data=DataConfig(short_edge_px=(128,), test_short_edge_px=128, long_edge_px=128),
    optim=OptimConfig(decay_at=(), clip_norm=1.5),
    evaluation=EvaluationConfig(max_images=3),
)

SEMANTIC = Recipe(
    name="a",
    model=DeepLabConfig(
        num_classes=5,
        backbone=BackboneConfig(name="resnet18", norm="group", freeze_at=0),
        head=SemanticHeadConfig(kind="pointrend", aspp_rates=(1, 2)),
    ),
    optim=OptimConfig(schedule="poly", warmup_steps=0),
)


def test_json_round_trip_gives_an_equal_recipe():
    assert from_json(to_json(RECIPE)) == RECIPE
    assert from_json(to_json(SEMANTIC)) == SEMANTIC
    assert from_json(to_json(Recipe(name="b"))) == Recipe(name="b")


def test_fields_missing_in_json_get_defaults():
    assert from_json('{"name": "b", "optim": {"steps": 5}}') == Recipe(
        name="b", optim=OptimConfig(steps=5)
    )


def test_every_problem_is_in_one_error():
    plain = json.loads(to_json(RECIPE))
    plain["optim"]["stepz"] = 3
    plain["optim"]["lr_per_image"] = "fast"
    plain["model"]["backbone"]["norm"] = "layer"
    plain["model"]["backbone"]["pixel_mean"] = [1.0]
    plain["model"]["mask_head"]["targets"]["kernel_size"] = 4
    plain["data"]["flip_probability"] = 2.0
    plain["scale"] = 3
    plain["checkpoint"]["keep"] = True
    plain["tracking"]["log_every"] = 2.5
    del plain["name"]
    with pytest.raises(RecipeError) as caught:
        from_json(json.dumps(plain))
    text = str(caught.value)
    for problem in (
        "optim.stepz: unknown field; perhaps you meant steps",
        "optim.lr_per_image: needs a number, got 'fast'",
        "model.backbone.norm: must be one of 'frozen', 'batch', 'sync', 'group', got 'layer'",
        "model.backbone.pixel_mean: needs 3 values, got 1",
        "model.mask_head.targets.kernel_size: must be odd, got 4",
        "data.flip_probability: must be in [0, 1], got 2.0",
        "scale: needs an object with fields, got 3",
        "checkpoint.keep: needs a whole number, got True",
        "tracking.log_every: needs a whole number, got 2.5",
        "name: is missing",
    ):
        assert problem in text
    assert text.startswith("10 problems in the recipe:")


def test_the_task_selects_the_model():
    assert json.loads(to_json(RECIPE))["model"]["task"] == "instance"
    semantic = from_json('{"name": "b", "model": {"task": "semantic", "num_classes": 7}}')
    assert semantic.model == DeepLabConfig(num_classes=7)
    assert from_json('{"name": "b", "model": {"num_classes": 7}}').model == MaskRCNNConfig(
        num_classes=7
    )
    with pytest.raises(
        RecipeError, match=r"model\.task: must be one of 'instance', 'semantic', 'refine', got 3"
    ):
        from_json('{"name": "b", "model": {"task": 3}}')
    with pytest.raises(RecipeError, match="model: needs an object with fields, got 3"):
        from_json('{"name": "b", "model": 3}')


def test_every_problem_of_a_semantic_model_is_in_one_error():
    plain = json.loads(to_json(SEMANTIC))
    plain["model"]["mask_head"] = {}
    plain["model"]["backbone"]["fpn_channels"] = 8
    plain["model"]["output_stride"] = 32
    plain["model"]["head"]["targets"]["kernel_size"] = 4
    plain["optim"]["schedule"] = "linear"
    with pytest.raises(RecipeError) as caught:
        from_json(json.dumps(plain))
    text = str(caught.value)
    for problem in (
        "model.mask_head: unknown field",
        "model.backbone.fpn_channels: unknown field",
        "model.output_stride: must be one of 8, 16, got 32",
        "model.head.targets.kernel_size: must be odd, got 4",
        "optim.schedule: must be one of 'multistep', 'poly', 'cosine', got 'linear'",
    ):
        assert problem in text
    assert text.startswith("5 problems in the recipe:")


def test_types_and_rules_of_one_part_are_reported_together():
    optim = '{"steps": 0, "momentum": true, "lr": 1}'
    text = f'{{"name": "b", "optim": {optim}, "data": {{"long_edge_px": 64}}}}'
    with pytest.raises(RecipeError) as caught:
        from_json(text)
    assert str(caught.value).splitlines() == [
        "4 problems in the recipe:",
        "  optim.momentum: needs a number, got True",
        "  optim.lr: unknown field",
        "  data.long_edge_px: must be at least the short edge 800, got 64",
        "  optim.steps: must be at least 1, got 0",
    ]


def test_rules_that_a_mistyped_value_could_change_are_not_reported():
    text = '{"name": "b", "optim": {"global_batch": "3"}, "scale": {"num_workers": 3}}'
    with pytest.raises(RecipeError) as caught:
        from_json(text)
    assert str(caught.value).splitlines() == [
        "1 problem in the recipe:",
        "  optim.global_batch: needs a whole number, got '3'",
    ]


def test_recipes_with_old_names_are_read():
    archive = Path(__file__).parents[1] / "fixtures" / "recipes_before_renames.zip"
    recipes = json.loads(zipfile.ZipFile(archive).read("recipes.json"))
    assert len(recipes) == 70
    for plain in recipes.values():
        recipe = from_dict(plain)
        assert recipe.scale.images_per_microbatch == plain["scale"]["images_per_pass"]
        assert recipe.evaluation.images_per_batch == plain["evaluation"]["images_per_pass"]
        if plain["model"]["task"] == "instance":
            assert recipe.model.box_convention == plain["model"]["geometry"]
            head, old = recipe.model.mask_head, plain["model"]["mask_head"]
        else:
            head, old = recipe.model.head, plain["model"]["head"]
        assert head.squeeze.variant == old["squeeze"]["wiring"]
        assert from_json(to_json(recipe)) == recipe


@pytest.mark.parametrize("path", OLD_NAMES)
def test_an_old_name_beside_the_new_one_is_an_error(path):
    plain = json.loads(to_json(SEMANTIC if path.startswith("model.head") else RECIPE))
    *parents, old = path.split(".")
    part = plain
    for name in parents:
        part = part[name]
    part[old] = part[OLD_NAMES[path]]
    with pytest.raises(RecipeError, match=rf"{path}: is the old name of {OLD_NAMES[path]}"):
        from_dict(plain)
    assert old in part, "the input stays as it was"


@pytest.mark.timeout(20)
def test_a_batch_of_any_size_is_answered_at_once():
    text = f'{{"name": "b", "optim": {{"global_batch": {2**40}}}, "scale": {{"num_workers": 3}}}}'
    with pytest.raises(RecipeError, match=r"take one of 1, 2, 4, 8, .*, 512, 1024$"):
        from_json(text)


def test_a_rule_across_two_parts_is_checked():
    with pytest.raises(
        RecipeError, match=r"scale\.num_workers: 3 does not divide .* take one of 1, 2, 4"
    ):
        from_json('{"name": "b", "scale": {"num_workers": 3}}')


@pytest.mark.parametrize("text", ["", "[]", '{"name": "b", "optim": {"lr_per_image": NaN}}'])
def test_invalid_json_is_rejected(text):
    with pytest.raises(RecipeError):
        from_json(text)


def test_every_field_changes_the_fingerprint():
    plain = json.loads(to_json(RECIPE))
    seen = {fingerprint(RECIPE)}
    changed = (
        replace(RECIPE, name="b"),
        replace(RECIPE, seed=8),
        replace(RECIPE, storage="elsewhere"),
        replace(RECIPE, scale=ScaleConfig(num_workers=1)),
        replace(RECIPE, optim=replace(RECIPE.optim, clip_norm=None)),
        replace(RECIPE, data=replace(RECIPE.data, short_edge_px=(96, 128))),
    )
    seen |= {fingerprint(recipe) for recipe in changed}
    assert len(seen) == 1 + len(changed)
    assert all(len(digits) == 12 for digits in seen)
    assert fingerprint(from_json(json.dumps(plain))) == fingerprint(RECIPE)


def test_a_whole_number_in_a_float_field_is_the_same_recipe():
    one = replace(RECIPE, optim=replace(RECIPE.optim, clip_norm=1, momentum=0))
    other = replace(RECIPE, optim=replace(RECIPE.optim, clip_norm=1.0, momentum=0.0))
    assert fingerprint(one) == fingerprint(other)
    assert differences(one, other) == []


def test_the_fingerprint_stays_the_same_from_one_version_to_the_next():
    # A run's folder, its checkpoints and its registered model carry it.
    text = '{"name": "b", "optim": {"steps": 5}}'
    assert fingerprint(from_json(text)) == fingerprint(
        from_json('{"optim": {"steps": 5}, "name": "b"}')
    )


def test_differences_name_the_field_and_both_values():
    other = replace(
        RECIPE,
        optim=replace(RECIPE.optim, steps=200, decay_at=(100,)),
        model=replace(RECIPE.model, backbone=replace(RECIPE.model.backbone, norm="batch")),
    )
    assert differences(RECIPE, other) == [
        'model.backbone.norm: "frozen" -> "batch"',
        "optim.steps: 90000 -> 200",
        "optim.decay_at: [] -> [100]",
    ]
    assert differences(RECIPE, RECIPE) == []


def test_differences_of_two_kinds_of_models():
    other = replace(RECIPE, model=replace(SEMANTIC.model, num_classes=4))
    assert differences(RECIPE, other) == [
        'model.task: "instance" -> "semantic"',
        "model.num_classes: 5 -> 4",
        'model.backbone.norm: "frozen" -> "group"',
        "model.backbone.freeze_at: 2 -> 0",
    ]
    assert fingerprint(RECIPE) != fingerprint(other)


@pytest.mark.parametrize("recipe", [RECIPE, SEMANTIC])
def test_without_weights_changes_nothing_else(recipe):
    backbone = replace(recipe.model.backbone, weights="timm")
    model = replace(recipe.model, backbone=backbone, weights="file", weights_leave_out=("head",))
    assert without_weights(model) == recipe.model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": null}', "name: needs a text, got None"),
        (
            '{"name": "x", "model": {"weights_leave_out": ["a", 7]}}',
            r"leave_out\[1\]: needs a text",
        ),
        ('{"name": ' + "[" * 300 + "]" * 300 + "}", "name.*is nested more than 32 levels deep"),
        ('{"name": "x", "seed": 1' + "0" * 400 + "}", "seed: does not fit into 64 bits"),
        ('{"name": "\\ud800"}', "'name': is not valid Unicode"),
        ('{"\\ud800": 1}', "is not valid Unicode"),
        ('{"name": "x", "optim": "' + "y" * 10**5 + '"}', r"got 'y{1,60}$"),
    ],
    ids=["name", "in a list", "deep", "number", "text", "key", "long"],
)
def test_values_that_json_has_and_no_recipe_are_named(text: str, message: str):
    with pytest.raises(RecipeError, match=message) as error:
        from_json(text)
    assert len(str(error.value)) < 1000
