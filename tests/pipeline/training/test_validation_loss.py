"""The losses of training, on the validation split, without augmentation and without a trace."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bsm.build import build_model
from pipeline.data.collate import collate_for_test
from pipeline.data.seeds import sample_seeds
from pipeline.evaluation.instances import TRUE_BOX_COLUMNS
from pipeline.evaluation.split_reader import plan_chunks, read_chunk
from pipeline.recipe import ColorConfig
from pipeline.training.step import WorkerContext
from pipeline.training.validation_loss import compute_validation_losses
from tests.pipeline.training import tiny_run, tiny_semantic_run


def test_they_are_the_losses_of_training_on_images_as_evaluated(tmp_path):
    shards = tiny_run.write_shards(tmp_path, train_images=1, val_images=3)
    recipe = tiny_run.tiny_recipe(shards, tmp_path, name="tiny", num_workers=0)
    # Neither of these may show.
    data = replace(recipe.data, color=ColorConfig(brightness=0.9), flip_probability=1.0)
    recipe = replace(recipe, data=data)
    model = build_model(recipe.model)
    found = compute_validation_losses(model, recipe, worker=WorkerContext())
    expected = []
    (chunk,) = plan_chunks(f"{shards}/val", max_images=None, images_per_chunk=8)
    rows = read_chunk(f"{shards}/val", chunk, truth=TRUE_BOX_COLUMNS)
    for row in range(3):
        batch = collate_for_test(rows.slice(row, 1), recipe.data, with_targets=True)
        seeds = sample_seeds(recipe.seed, epochs=0, image_ids=batch.image_id.numpy(), repeats=0)
        targets = batch.targets._replace(sample_seed=torch.from_numpy(seeds))
        with torch.no_grad():
            expected.append(model(batch.images, batch.image_sizes_hw, targets))
    assert found.keys() == {"val_loss", *(f"val_{name}" for name in expected[0])}
    for name in expected[0]:
        mean = sum(losses[name].item() for losses in expected) / 3
        assert found[f"val_{name}"] == pytest.approx(mean, rel=1e-5), name


def test_they_leave_the_model_and_the_random_state_as_they_were(tmp_path):
    shards = tiny_semantic_run.write_shards(tmp_path)
    recipe = tiny_semantic_run.semantic_recipe(shards, tmp_path, name="maps", num_workers=0)
    model = build_model(recipe.model)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (
        compute_validation_losses(model, recipe, worker=WorkerContext()) for _ in range(2)
    )
    assert first == second
    assert first["val_loss"] == pytest.approx(
        sum(value for name, value in first.items() if name != "val_loss")
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(module.training for module in model.modules())
