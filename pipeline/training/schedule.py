"""Fit the learning rate schedule to the number of steps, and tell what a schedule cannot do."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Protocol

from pipeline.recipe import Recipe
from pipeline.text import format_count


class Fit(Protocol):
    """Derives fields of a recipe that the user did not set, such as `follow_steps`."""

    def __call__(
        self, declared: Recipe, recipe: Recipe, *, given: Collection[str]
    ) -> tuple[Recipe, list[str]]:
        """Return the recipe, and a notice for each value that changed."""


def follow_steps(
    declared: Recipe, recipe: Recipe, *, given: Collection[str]
) -> tuple[Recipe, list[str]]:
    """Scale warm-up and decay of the declared recipe to another number of steps.

    A hundred steps with the warm-up of ninety thousand would train at next to no learning rate.

    Args:
        declared: the recipe before its overrides.
        recipe: the recipe with them.
        given: paths of the fields that the user has set, such as "optim.warmup_steps"; they stay.

    Returns:
        The recipe, and a notice for each value that changed or that does not fit.
    """
    before, optim = declared.optim, recipe.optim
    if optim.steps == before.steps:
        return recipe, []
    scale = optim.steps / before.steps
    notices = []
    if "optim.warmup_steps" not in given and optim.warmup_steps:
        optim = replace(optim, warmup_steps=max(round(before.warmup_steps * scale), 1))
        notices.append(f"--optim.warmup-steps {optim.warmup_steps}")
    if "optim.decay_at" not in given and optim.decay_at and optim.schedule == "multistep":
        optim = replace(optim, decay_at=tuple(round(step * scale) for step in before.decay_at))
        notices.append(f"--optim.decay-at {' '.join(map(str, optim.decay_at))}")
    if notices:
        text = ", ".join(notices)
        notices = [
            f"schedule: {text}: the same shares of {format_count(optim.steps, 'step')} as the "
            f"recipe has of {before.steps}; set them to keep others"
        ]
    return replace(recipe, optim=optim), notices


def find_misfits(recipe: Recipe) -> Iterator[str]:
    """Yield what in a schedule cannot work as it is meant."""
    yield from _find_learning_rate_misfits(recipe)
    steps, every = recipe.optim.steps, recipe.checkpoint.every_steps
    if every >= steps:
        yield (
            f"the run of {format_count(steps, 'step')} ends before its first checkpoint at step "
            f"{every}, so one that breaks off starts again at step 0; try "
            f"--checkpoint.every-steps {max(steps // 4, 1)}"
        )


def _find_learning_rate_misfits(recipe: Recipe) -> Iterator[str]:
    optim = recipe.optim
    steps = format_count(optim.steps, "step")
    if optim.warmup_steps >= optim.steps:
        yield (
            f"the warm-up of {format_count(optim.warmup_steps, 'step')} is as long as the run of "
            f"{steps}, so the learning rate is never reached; try --optim.warmup-steps "
            f"{optim.steps // 10}"
        )
    late = [step for step in optim.decay_at if step >= optim.steps]
    if optim.schedule == "multistep" and late:
        yield (
            f"the learning rate is to fall at step {', '.join(map(str, late))}, and the run has "
            f"{steps}; try --optim.decay-at {optim.steps * 2 // 3} {optim.steps * 8 // 9}"
        )


def describe_short_run(recipe: Recipe, *, train_images: int) -> str:
    """Say that the run is less than an epoch, or a step more than one; "" if neither is so."""
    images = recipe.optim.global_batch
    seen = recipe.optim.steps * images
    if seen < train_images:
        return (
            f"{format_count(recipe.optim.steps, 'step')} of {format_count(images, 'image')} see "
            f"{seen} of {train_images}, less than an epoch; one takes --optim.steps "
            f"{-(-train_images // images)}"
        )
    if train_images >= images:
        return ""
    return (
        f"a step takes {format_count(images, 'image')} and an epoch has {train_images}, so a step "
        f"sees images more than once; try --optim.global-batch {train_images}"
    )


def explain_nothing_found(recipe: Recipe, *, train_images: int) -> list[str]:
    """List the likely reasons why a trained model finds nothing, most likely first."""
    optim, model = recipe.optim, recipe.model
    epochs = optim.steps * optim.global_batch / max(train_images, 1)
    reasons = list(_find_learning_rate_misfits(recipe))
    if not model.weights and epochs < 10:
        reasons.append(
            f"{format_count(optim.steps, 'step')} are {epochs:.1f} epochs, few for a model whose "
            "heads start at random: train longer, or start from --model.weights of a model that "
            "detects already"
        )
    if not model.weights and not model.backbone.weights:
        reasons.append("the backbone starts at random: give --model.backbone.weights")
    return [
        *reasons,
        f"the learning rate {optim.lr:g} is too low or too high: see the loss in the report",
        "the masks are not where they belong: look at them with bsm view data",
    ]
