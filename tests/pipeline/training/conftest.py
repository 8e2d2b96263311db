import pytest

from pipeline.recipe import CheckpointConfig, OptimConfig, Recipe, ScaleConfig, TrackingConfig
from pipeline.training.loop import TrainJob
from tests.pipeline.training.tiny_training import job_of


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    return Recipe(
        name="tiny",
        storage=str(tmp_path / "runs"),
        optim=OptimConfig(
            global_batch=4, lr_per_image=0.05, steps=10, warmup_steps=3, decay_at=(6,)
        ),
        scale=ScaleConfig(num_workers=0),
        checkpoint=CheckpointConfig(every_steps=4, keep=2),
        tracking=TrackingConfig(log_every=3),
    )


@pytest.fixture
def job(recipe) -> TrainJob:
    return job_of(recipe)
