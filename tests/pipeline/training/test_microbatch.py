"""images_per_microbatch "auto": found by trying, once, and then a number like any other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bsm.build import build_model
from bsm.configs.instance import MaskRCNNConfig
from pipeline.cli import parse_recipe
from pipeline.errors import RecipeError
from pipeline.recipe import (
    DataConfig,
    OptimConfig,
    Recipe,
    ScaleConfig,
    from_dict,
    from_json,
    to_json,
)
from pipeline.recipe_json import to_plain
from pipeline.training import checkpoint, microbatch
from pipeline.training.microbatch import (
    find_largest,
    find_on_device,
    resolve_microbatch,
    split_evenly,
)
from pipeline.training.optim import build_optimizer
from pipeline.training.preflight import prepare_run
from tests.pipeline.training.tiny_run import tiny_recipe, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("microbatch"), train_images=12)


def auto_recipe(shards: Path, storage: Path) -> Recipe:
    recipe = tiny_recipe(shards, storage, name="auto", num_workers=0)
    return replace(recipe, scale=replace(recipe.scale, images_per_microbatch="auto"))


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 13, 16])
def test_the_largest_that_fits_is_found_in_few_trials(limit: int):
    for largest in range(1, 20):
        tried = []
        found = find_largest(lambda n: tried.append(n) or n <= largest, limit=limit)  # noqa: B023
        assert found == min(largest, limit)
        assert max(tried, default=0) <= limit
        assert len(tried) == len(set(tried)) <= 8
    assert find_largest(lambda _: False, limit=limit) == 1


def test_passes_are_of_even_size():
    assert [split_evenly(16, largest=n) for n in (16, 15, 9, 8, 6, 5, 1)] == [16, 8, 8, 8, 6, 4, 1]


def test_a_full_device_is_tried_without_a_trace(shards, tmp_path):
    recipe = auto_recipe(shards, tmp_path)
    recipe = replace(recipe, optim=replace(recipe.optim, global_batch=7))
    seen: list[tuple[tuple[int, ...], int]] = []

    def build(config: MaskRCNNConfig) -> torch.nn.Module:
        model = build_model(config)

        def fail_if_full(_: object, args: tuple) -> None:
            images, sizes, targets = args
            assert torch.equal(sizes, torch.tensor([images.shape[-2:]] * len(images)))
            seen.append((tuple(images.shape), int(targets.valid.sum(dim=1).min())))
            if len(images) > 4:
                raise torch.OutOfMemoryError("full")

        model.register_forward_pre_hook(fail_if_full)
        return model

    assert find_on_device(recipe, train_uri=f"{shards}/train", device="cpu", build=build) == 4
    # Two passes where the first one fits: 2, 4, 6 and 5 images.
    assert [shape[0] for shape, _ in seen] == [2, 2, 4, 4, 6, 5]
    # As large as a pass of tall and wide images together.
    assert {shape[2:] for shape, _ in seen} == {(96, 96)}
    assert all(objects >= 128 for _, objects in seen)


def test_a_run_has_the_number_in_its_recipe_and_its_resume_takes_it(shards, tmp_path, monkeypatch):
    prepared = resolve_microbatch(prepare_run(auto_recipe(shards, tmp_path)))
    # On a CPU nothing is tried: all four images are small.
    assert prepared.recipe.scale.images_per_microbatch == 4
    saved = from_json(Path(prepared.run_uri, "recipe.json").read_text())
    assert saved == prepared.identity.recipe
    assert saved.scale.images_per_microbatch == 4
    # A run that has trained with 3 goes on with 3, with no trial.
    scale = replace(saved.scale, images_per_microbatch=3)
    identity = replace(prepared.identity, recipe=replace(saved, scale=scale))
    model = torch.nn.Linear(1, 1)
    checkpoint.save(
        prepared.run_uri,
        model=model,
        optimizer=build_optimizer(model, optim=saved.optim),
        step=5,
        epoch=0,
        identity=identity,
    )
    large = replace(
        auto_recipe(shards, tmp_path), data=DataConfig(), optim=OptimConfig(global_batch=5)
    )
    assert microbatch._find(large, train_uri="") == 2
    monkeypatch.setattr(microbatch, "_find", lambda *_, **__: pytest.fail("it was tried again"))
    resumed = resolve_microbatch(prepare_run(auto_recipe(shards, tmp_path)))
    assert resumed.recipe.scale.images_per_microbatch == 3
    number = replace(resumed.recipe, scale=replace(scale, images_per_microbatch=1))
    assert resolve_microbatch(replace(resumed, recipe=number)).recipe == number


def test_it_is_a_number_or_a_word_on_the_command_line_and_in_json():
    recipe = Recipe(name="a")
    for value, text in (("auto", "auto"), (4, "4")):
        parsed, _ = parse_recipe(recipe, ["--scale.images-per-microbatch", text])
        assert parsed.scale.images_per_microbatch == value
        assert from_json(to_json(parsed)) == parsed
    for value, reason in (
        ("atuo", "must be one of 'auto', got 'atuo'"),
        (0, "must be at least 1, got 0"),
        (2.5, "needs a whole number, or the word that the field takes, got 2.5"),
        (None, "needs a whole number, or the word that the field takes, got None"),
    ):
        plain = json.loads(json.dumps(to_plain(recipe)))
        plain["scale"]["images_per_microbatch"] = value
        with pytest.raises(RecipeError) as error:
            from_dict(plain)
        assert str(error.value).endswith(f"  scale.images_per_microbatch: {reason}")
    with pytest.raises(SystemExit):
        parse_recipe(recipe, ["--scale.images-per-microbatch", "atuo"])


def test_what_needs_a_number_says_so():
    with pytest.raises(RecipeError, match=r"only a training run finds.*--scale\.images-per"):
        _ = ScaleConfig(images_per_microbatch="auto").microbatch
    model = MaskRCNNConfig()
    batch = replace(model, backbone=replace(model.backbone, norm="batch"))
    with pytest.raises(RecipeError, match=r'"auto" would change what this model learns'):
        Recipe(name="a", model=batch, scale=ScaleConfig(images_per_microbatch="auto"))
