"""A tiny model and a stream of a few images, to run the loop without Ray or shards."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.recipe import Recipe
from pipeline.training.checkpoint import Identity
from pipeline.training.loop import TrainJob


class TinyModel(nn.Module):
    """Two losses, a norm layer, dropout, and a NaN loss for images that contain 255."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(4, 2)

    def forward(self, images: Tensor, image_sizes_hw: Tensor, targets: Tensor) -> dict[str, Tensor]:
        poison = torch.where((images == 255).any(), torch.nan, 1.0)
        pooled = self.drop(self.norm(self.conv(images.float() / 255))).mean(dim=(2, 3))
        error = (self.out(pooled) - targets).pow(2).mean(dim=0)
        return {"loss_mask": error[0] * poison, "loss_box": error[1]}


@dataclass(frozen=True)
class FakeBatch:
    images: Tensor
    image_sizes_hw: Tensor
    targets: Tensor
    image_id: Tensor
    lanes: Tensor
    colors: None = None
    damage: None = None
    dropped: None = None

    def to(self, device: torch.device) -> "FakeBatch":
        return self


@dataclass(frozen=True)
class FakeStep:
    step: int
    epoch: int
    microbatches: tuple[FakeBatch, ...]


def fake_batch(ids: list[int], lanes: list[int], *, poisoned: frozenset[int]) -> FakeBatch:
    images = torch.stack(
        [torch.randint(0, 255, (3, 8, 8), generator=_generator(i), dtype=torch.uint8) for i in ids]
    )
    for index, image in enumerate(ids):
        if image in poisoned:
            images[index, 0, 0, 0] = 255
    targets = torch.stack([torch.rand(2, generator=_generator(1000 + i)) for i in ids])
    sizes = torch.full((len(ids), 2), 8)
    return FakeBatch(images, sizes, targets, torch.tensor(ids), torch.tensor(lanes))


def fake_steps(
    first_step: int,
    *,
    steps: int,
    global_batch: int = 4,
    images_per_microbatch: int = 2,
    samples: int = 10,
    rank: int = 0,
    world_size: int = 1,
    poisoned: frozenset[int] = frozenset(),
) -> Iterator[FakeStep]:
    """Yield image (step * G + lane) mod samples; with 10 images an epoch ends inside a step."""
    lanes = list(range(rank, global_batch, world_size))
    for step in range(first_step, steps):
        microbatches = [
            lanes[i : i + images_per_microbatch]
            for i in range(0, len(lanes), images_per_microbatch)
        ]
        yield FakeStep(
            step,
            step * global_batch // samples,
            tuple(
                fake_batch(
                    [(step * global_batch + lane) % samples for lane in part],
                    part,
                    poisoned=poisoned,
                )
                for part in microbatches
            ),
        )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def job_of(recipe: Recipe, **changes: object) -> TrainJob:
    recipe = replace(recipe, **changes)
    return TrainJob(
        recipe=recipe,
        identity=Identity(
            recipe=recipe, categories=((7, 0, "cat"), (9, 1, "dog")), data_fingerprint="abc"
        ),
        run_uri=f"{recipe.storage}/{recipe.name}",
        resume_command=f"python jobs/tiny.py --name {recipe.name}",
    )
