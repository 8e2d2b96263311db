"""The declaration of a sweep: a recipe, the values to search, and the number of trials.

Values are named as on the command line, such as optim.lr_per_image. The first trials, the
baselines, change only the kernel size of the recipe: the curve of the paper's Fig. 6. All others
are sampled from the whole space.
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

from annotated_types import MinLen

from bsm.configs.instance import MaskRCNNConfig
from bsm.configs.rules import KernelSize, NonNegativeInt, PositiveFloat, PositiveInt
from bsm.configs.semantic import DeepLabConfig
from pipeline import storage
from pipeline.recipe import Recipe, RecipePart, from_dict
from pipeline.recipe_json import leaves, to_plain

Values: TypeAlias = dict[str, Any]
"""Searched values by field name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range(RecipePart):
    """A range of positive values of one field, searched on a log scale."""

    field: str
    low: PositiveFloat
    high: PositiveFloat

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check the order of the bounds."""
        if self.low >= self.high:
            yield "low", f"must be below high {self.high}, got {self.low}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep(RecipePart):
    """A search space and its recipe, which also names the sweep."""

    recipe: Recipe
    """The base of all trials. A trial has optim.steps steps, and is evaluated, and may be stopped,
    every checkpoint.every_steps."""
    ranges: tuple[Range, ...]
    kernel_sizes: Annotated[tuple[KernelSize, ...], MinLen(1)] = (3, 5, 7, 9, 11)
    """Fig. 6."""
    trials: PositiveInt = 30
    """Including those that are stopped early."""
    parallel: NonNegativeInt = 0
    """Maximum number of concurrent trials; 0 is the capacity of the cluster."""
    metric: str = "boundary_ap"
    """The metric of the evaluation to maximize."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that the recipe can be searched, and that it lies in the ranges."""
        if not _has_kernel(self.recipe):
            yield "recipe.model", "has no kernel size to search: only squeeze heads have one"
        if self.recipe.scale.num_workers == 0:
            yield (
                "recipe.scale.num_workers",
                "each trial is a Ray Train run and needs a worker: --scale.num-workers 1",
            )
        if self.recipe.checkpoint.best_metric:
            yield (
                "recipe.checkpoint.best_metric",
                "trials are compared by their last step; leave it out, and set it to train the "
                "winner",
            )
        every, steps = self.recipe.checkpoint.every_steps, self.recipe.optim.steps
        if every >= steps:
            yield (
                "recipe.checkpoint.every_steps",
                f"trials are evaluated and may be stopped every {every} steps, which must be less "
                f"than optim.steps {steps}",
            )
        known = leaves(to_plain(self.recipe))
        for index, each in enumerate(self.ranges):
            if each.field not in known:
                near = difflib.get_close_matches(each.field, known, n=1)
                hint = f"; perhaps you meant {near[0]}" if near else ""
                yield f"ranges[{index}].field", f"unknown field {each.field}{hint}"
            elif not each.low <= known[each.field] <= each.high:
                yield (
                    f"recipe.{each.field}",
                    f"must be in the searched range {each.low:g} to {each.high:g}, got "
                    f"{known[each.field]:g}",
                )

    @property
    def fields(self) -> tuple[str, ...]:
        """The searched fields, the kernel size first."""
        return (kernel_field(self.recipe), *(each.field for each in self.ranges))


def kernel_field(recipe: Recipe) -> str:
    """Return the field name of the kernel size."""
    part = "mask_head" if isinstance(recipe.model, MaskRCNNConfig) else "head"
    return f"model.{part}.targets.kernel_size"


def baselines(sweep: Sweep) -> list[Values]:
    """Return the recipe's own values with each kernel size."""
    own = leaves(to_plain(sweep.recipe))
    return [
        {kernel_field(sweep.recipe): size} | {each.field: own[each.field] for each in sweep.ranges}
        for size in sweep.kernel_sizes
    ]


def is_baseline(sweep: Sweep, values: Mapping[str, Any]) -> bool:
    """Check whether a trial changes only the kernel size of the recipe."""
    own = leaves(to_plain(sweep.recipe))
    return all(values[each.field] == own[each.field] for each in sweep.ranges)


def apply_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with other values.

    Raises:
        RecipeError: fields are unknown or values break a rule; all problems in one message.
    """
    plain = to_plain(recipe)
    for name, value in values.items():
        *path, last = name.split(".")
        part = plain
        for key in path:
            part = part[key]
        part[last] = value
    return from_dict(plain)


def trial_recipe(recipe: Recipe, *, number: int, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of one trial: a separate run in the sweep's folder."""
    changed = apply_values(recipe, values)
    return replace(
        changed,
        name=trial_name(recipe.name, number),
        storage=storage.join(recipe.storage, recipe.name),
        evaluation=replace(changed.evaluation, every_checkpoint=True),
        # Versions of all trials would bury the useful ones.
        tracking=replace(changed.tracking, model_name=""),
    )


def trial_name(sweep: str, number: int) -> str:
    """Return the run name of a trial."""
    return f"{sweep}-{number:03d}"


def format_values(values: Mapping[str, Any]) -> str:
    """Format values for a log line, by the last part of their names."""
    return "  ".join(
        f"{short_name(name)} {_format_number(value)}" for name, value in values.items()
    )


def short_name(field: str) -> str:
    """Return the last part of a field's name, with the word weight for loss weights."""
    *path, last = field.split(".")
    return f"{last} weight" if path and path[-1] == "loss_weights" else last


def _format_number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _has_kernel(recipe: Recipe) -> bool:
    match recipe.model:
        case MaskRCNNConfig(mask_head=head) | DeepLabConfig(head=head):
            return head.kind == "squeeze"
        case _:
            return False
