#!/usr/bin/env python
r"""Fine-tune a trained model on data of your own.

    python jobs/finetune.py --data.root ~/shards/photos --from models:/bsm-coco@champion
    python jobs/finetune.py --data.root ~/shards/photos \
        --from torchvision:MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1

--data.root is a folder with the shards of a training and a validation split. --from is a registered
model (models:/NAME@ALIAS or models:/NAME/VERSION) or a published one (torchvision:NAME or
detectron2:NAME); a wrong name is answered with those that there are.

Categories continue those of the same name; others start at random. Batch, steps and learning rate
are derived from the number of images, and printed with the reason. Any field of the recipe can be
set as in jobs/coco_r50.py, and then stays; --help shows the values of that recipe, of which a run
takes the model's instead. The same command resumes.
"""

import argparse
import functools
from collections.abc import Collection
from dataclasses import dataclass, replace

from pipeline.cli import Result, parse_recipe, run_job, train_row
from pipeline.errors import RecipeError
from pipeline.invocation import Invocation
from pipeline.recipe import DataConfig, Recipe
from pipeline.rows import Row

OPTIONS = Recipe(name="finetune")
"""Its fields are the options, whatever the model."""
_NEEDED = {"--from": "models:/NAME@champion", "--data.root": "SHARDS"}


@dataclass(frozen=True, slots=True)
class _Choice:
    """The flags that the recipe is made from, before its own are known."""

    values: dict[str, str]
    others: tuple[str, ...]
    """All arguments but --from, which is no field of a recipe."""


def main(call: Invocation | None = None) -> None:
    """Fine-tune the model that --from names on the data that --data.root names."""
    call = call or Invocation()
    run_job(functools.partial(_finetune, call), call)


def _finetune(call: Invocation) -> Result | None:
    choice = _read_choice(call.arguments)
    missing = [flag for flag in _NEEDED if not choice.values[flag]]
    if {"-h", "--help"} & set(call.arguments):
        # Before a model is named, the options are those of the most frequent recipe.
        parse_recipe(OPTIONS, ["--help"], description=call.docstring, program=_usage(call))
    if missing:
        raise RecipeError(
            f"{' and '.join(missing)} must be given: {call.command} --data.root SHARDS --from "
            "MODEL, where MODEL is models:/NAME@champion, torchvision:NAME or detectron2:NAME"
        )
    from pipeline.training import finetune

    values = choice.values
    root = values["--data.root"]
    data = DataConfig(
        root=root,
        train_split=values["--data.train-split"] or finetune.choose_split(root, "train"),
        val_split=values["--data.val-split"] or finetune.choose_split(root, "val"),
    )
    name = values["--name"] or finetune.name_run(root)
    start = finetune.find_start(
        values["--from"],
        tracking=values["--tracking.uri"],
        storage_uri=values["--storage"] or "runs",
        name=name,
    )
    recipe, manifest = finetune.make_recipe(start, data, name=name)
    names = [each.name for each in manifest.categories]

    def fit(
        declared: Recipe, recipe: Recipe, *, given: Collection[str]
    ) -> tuple[Recipe, list[str]]:
        fitted, notices = finetune.fit_to_images(
            recipe, given=given, images=manifest.images, start=start.optim
        )
        return fitted, [finetune.describe_categories(start, names), *notices]

    return train_row(Row(recipe), replace(call, arguments=choice.others), fit=fit)


def _read_choice(arguments: tuple[str, ...]) -> _Choice:
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags = (*_NEEDED, "--data.train-split", "--data.val-split", "--name", "--storage")
    for flag in (*flags, "--tracking.uri"):
        early.add_argument(
            flag, flag.replace("-", "_").replace("__", "--", 1), dest=flag, default=""
        )
    found, _ = early.parse_known_args(arguments)
    only_from = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    only_from.add_argument("--from")
    _, others = only_from.parse_known_args(arguments)
    return _Choice(vars(found), tuple(others))


def _usage(call: Invocation) -> str:
    return f"{call.program} --data.root SHARDS --from MODEL"


if __name__ == "__main__":
    main()
