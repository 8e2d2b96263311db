"""What a sweep is: a recipe, the values of it that are searched, and how many trials may try.

A value is named as on the command line, such as optim.lr_per_image. The first trials are the recipe
itself with each kernel size and nothing else changed: the curve of the paper's Fig. 6. All others
are drawn from the whole space.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from bsm.configs.instance import MaskRCNNConfig
from pipeline import storage
from pipeline.recipe import Recipe, from_dict
from pipeline.recipe_json import leaves, to_plain
from pipeline.recipe_rules import raise_all

Values: TypeAlias = dict[str, Any]
"""Searched values by the field's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Positive numbers of one field, searched on a logarithmic scale."""

    field: str
    low: float
    high: float

    def __post_init__(self) -> None:
        raise_all(
            f"range of {self.field}",
            [(0 < self.low < self.high, f"needs 0 < low < high, got {self.low} to {self.high}")],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A search; its name is that of its recipe."""

    recipe: Recipe
    """What all trials have in common. It says where shards and results are, how long a trial is
    (optim.steps), and when trials are measured and may be stopped (checkpoint.every_steps)."""
    ranges: tuple[Range, ...]
    kernel_sizes: tuple[int, ...] = (3, 5, 7, 9, 11)
    """Fig. 6."""
    trials: int = 30
    """With those that are stopped early."""
    parallel: int = 0
    """Trials at once; 0 takes as many as the cluster has room for, and never are there more."""
    metric: str = "boundary_ap"
    """What is maximized: a metric of the evaluation."""

    def __post_init__(self) -> None:
        recipe = self.recipe
        known = leaves(to_plain(recipe))
        raise_all(
            f"sweep {recipe.name}",
            [
                (self.trials >= 1, f"trials must be at least 1, got {self.trials}"),
                (self.parallel >= 0, f"parallel may not be negative, got {self.parallel}"),
                (len(self.kernel_sizes) > 0, "kernel_sizes needs at least one value"),
                (
                    _has_kernel(recipe),
                    "the recipe's head has no kernel size to search: only squeeze heads have one",
                ),
                (
                    recipe.scale.num_workers >= 1,
                    "each trial is a Ray Train run and needs a worker: --scale.num-workers 1",
                ),
                (
                    recipe.checkpoint.every_steps < recipe.optim.steps,
                    f"trials are measured each checkpoint.every_steps "
                    f"({recipe.checkpoint.every_steps}), which must be less than optim.steps "
                    f"({recipe.optim.steps}), or none could be stopped early",
                ),
                *(
                    (
                        each.field in known,
                        f"{each.field} is no field of the recipe{_suggestion(each.field, known)}",
                    )
                    for each in self.ranges
                ),
                *(
                    (
                        each.low <= known[each.field] <= each.high,
                        f"the recipe's own {each.field} {known[each.field]:g} is not in "
                        f"{each.low:g} to {each.high:g}",
                    )
                    for each in self.ranges
                    if each.field in known
                ),
            ],
        )
        for size in self.kernel_sizes:
            applied(recipe, {kernel_field(recipe): size})

    @property
    def fields(self) -> tuple[str, ...]:
        """All that is searched, the kernel size first."""
        return (kernel_field(self.recipe), *(each.field for each in self.ranges))


def kernel_field(recipe: Recipe) -> str:
    """Name the field of the kernel size."""
    part = "mask_head" if isinstance(recipe.model, MaskRCNNConfig) else "head"
    return f"model.{part}.targets.kernel_size"


def baselines(sweep: Sweep) -> list[Values]:
    """Give the recipe's own values with each kernel size."""
    own = leaves(to_plain(sweep.recipe))
    return [
        {kernel_field(sweep.recipe): size} | {each.field: own[each.field] for each in sweep.ranges}
        for size in sweep.kernel_sizes
    ]


def is_baseline(sweep: Sweep, values: Mapping[str, Any]) -> bool:
    """Tell whether a trial is the recipe itself, but for the kernel size."""
    own = leaves(to_plain(sweep.recipe))
    return all(values[each.field] == own[each.field] for each in sweep.ranges)


def applied(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Put values into a recipe.

    Raises:
        RecipeError: a field is unknown, or a value breaks a rule; all of them in one message.
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
    """Give the recipe of one trial: a run of its own, in the sweep's folder."""
    changed = applied(recipe, values)
    return replace(
        changed,
        name=trial_name(recipe.name, number),
        storage=storage.join(recipe.storage, recipe.name),
        evaluation=replace(changed.evaluation, every_checkpoint=True),
        # Registering every trial would bury the versions that are for use.
        tracking=replace(changed.tracking, model_name=""),
    )


def trial_name(sweep: str, number: int) -> str:
    """Name the run of a trial."""
    return f"{sweep}-{number:03d}"


def shown(values: Mapping[str, Any]) -> str:
    """Write values for a line of the log, by the last parts of their names."""
    return "  ".join(f"{short(name)} {_number(value)}" for name, value in values.items())


def short(field: str) -> str:
    """Name a field for a table or a picture: the weights of losses all end in a loss's name."""
    *path, last = field.split(".")
    return f"{last} weight" if path and path[-1] == "loss_weights" else last


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _has_kernel(recipe: Recipe) -> bool:
    model = recipe.model
    head = model.mask_head if isinstance(model, MaskRCNNConfig) else model.head
    return head.kind == "squeeze"


def _suggestion(field: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(field, known, n=1)
    return f"; perhaps you meant {near[0]}" if near else ""
