#!/usr/bin/env python
"""The command `bsm`: the files of jobs/ by name.

    bsm --help
    bsm train coco_r50 --data.root ~/shards/coco

Where the package is not installed, `python jobs/command.py` is the same. A new verb is a line of
VERBS.
"""

import ast
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType

from pipeline.errors import RecipeError
from pipeline.invocation import Invocation
from pipeline.text import format_table, suggest

FOLDER = Path(__file__).parent

PROGRAM = "bsm"

SWEEP_PREFIX = "sweep_"
"""Users name the sweep in jobs/sweep_NAME.py by NAME."""

_HELP = ("-h", "--help")


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the command."""

    does: str
    """What it does for a user, in one line."""
    example: str
    """After the name of the program."""
    run: Callable[[Invocation], None]


def run_job(job: str, call: Invocation) -> None:
    """Run the function of this name in the file of this name in jobs/, or one of its VERBS."""
    from pipeline.cli import run_verb

    module = importlib.import_module(f"jobs.{job}")
    run_verb(getattr(module, "VERBS", None) or getattr(module, job), _describe(call, module))


def train(call: Invocation) -> None:
    """Train the recipe that the first argument names: a file in jobs/, or a file with JSON."""
    from pipeline import cli

    recipe = call.arguments[0] if call.arguments else ""
    if recipe.startswith("-") or not recipe:
        more = "  FILE.json: the recipe of an earlier run, or the winner of a sweep"
        _print_recipes(call, list_recipes(), usage="RECIPE [ROW] [OPTIONS]", more=more)
    elif recipe.endswith(".json") or "://" in recipe:
        cli.main_file(call)
    else:
        module, named = _find_recipe(call, list_recipes())
        cli.main(getattr(module, "ROWS", None) or module.RECIPE, named)


def finetune(call: Invocation) -> None:
    """Fine-tune the model that --from names."""
    module = importlib.import_module("jobs.finetune")
    module.main(_describe(call, module))


def sweep(call: Invocation) -> None:
    """Run the sweep that the first argument names: jobs/sweep_NAME.py."""
    from pipeline import cli

    if not call.arguments or call.arguments[0].startswith("-"):
        _print_recipes(call, list_sweeps(), usage="RECIPE [OPTIONS]")
    else:
        module, named = _find_recipe(call, list_sweeps(), prefix=SWEEP_PREFIX)
        cli.main_sweep(module.SWEEP, named)


VERBS: dict[str, Verb] = {
    "quickstart": Verb(
        "Train, evaluate, register and predict on generated images, in minutes.",
        "quickstart",
        partial(run_job, "quickstart"),
    ),
    "shapes": Verb(
        "Draw a small data set of shapes, to try everything without one.",
        "shapes --out data/shapes",
        partial(run_job, "shapes"),
    ),
    "ingest": Verb(
        "Check a data set and write it as shards, which training reads.",
        "ingest coco --root ~/photos --split train --out ~/shards/photos/train",
        partial(run_job, "ingest"),
    ),
    "audit": Verb(
        "Check that a folder of shards is complete and undamaged.",
        "audit --data ~/shards/photos/train",
        partial(run_job, "audit"),
    ),
    "view": Verb(
        "Look at photos of shards and their targets, or at what models do in photos.",
        "view data ~/shards/photos/train --category cat dog",
        partial(run_job, "view"),
    ),
    "doctor": Verb(
        "Check that this machine or a cluster can train, and say how to fix what is wrong.",
        "doctor",
        partial(run_job, "doctor"),
    ),
    "drill": Verb(
        "Inject faults into small runs here, and check that nothing is lost.",
        "drill driver-killed disk-full",
        partial(run_job, "drill"),
    ),
    "soak": Verb(
        "Train for an hour while faults come at random, and watch the memory.",
        "soak --minutes 60 --seed 0",
        partial(run_job, "soak"),
    ),
    "train": Verb(
        "Train a recipe, evaluate the model and register it; again, it resumes.",
        "train coco_r50 plain --data.root ~/shards/coco",
        train,
    ),
    "replay": Verb(
        "Repeat the step of a run whose loss was not finite, and name the images.",
        "replay runs/first-try",
        partial(run_job, "replay"),
    ),
    "finetune": Verb(
        "Fine-tune a registered or published model on data of your own.",
        "finetune --data.root ~/shards/photos --from models:/bsm-coco@champion",
        finetune,
    ),
    "sweep": Verb(
        "Search the best kernel size, loss weights and learning rate.",
        "sweep coco_r50 --data.root ~/shards/coco",
        sweep,
    ),
    "evaluate": Verb(
        "Compute AP, boundary AP or mean IoU of the predictions of any model.",
        "evaluate --truth instances.json --detections results.json --metric boundary",
        partial(run_job, "evaluate"),
    ),
    "report": Verb(
        "Write one HTML file with curves, scores and pictures of a run, beside another run.",
        "report runs/first-try --against runs/second-try",
        partial(run_job, "report"),
    ),
    "models": Verb(
        "List, show, compare, promote and roll back registered models.",
        "models list",
        partial(run_job, "models"),
    ),
    "predict": Verb(
        "Predict for photos or a video with a registered or exported model.",
        "predict --model models:/photos@champion --images ~/new-photos --out out",
        partial(run_job, "predict"),
    ),
    "export": Verb(
        "Write a model as ONNX or for torch.export, or shards as a COCO data set.",
        "export model models:/photos@champion --format onnx --out photos.onnx",
        partial(run_job, "export"),
    ),
    "serve": Verb(
        "Serve a registered model over HTTP, with a page to try it.",
        "serve models:/photos@champion",
        partial(run_job, "serve"),
    ),
    "refine": Verb(
        "Sharpen the masks of any model, tool or annotator.",
        "refine --model models:/refiner@champion --images photos --labels masks --out sharp",
        partial(run_job, "refine"),
    ),
    "completion": Verb(
        "Print what makes the Tab key complete verbs, recipes and options in your shell.",
        "completion bash >> ~/.bashrc",
        partial(run_job, "completion"),
    ),
}


def main() -> None:
    """Run the verb that the command line names.

    Exits with 2 if there is no such verb.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in _HELP:
        _print_quietly(format_help())
    elif name == "--version":
        _print_quietly(_read_version())
    elif name == "--complete":
        completion = importlib.import_module("jobs.completion")
        _print_quietly("\n".join(completion.complete(arguments)))
    elif name in VERBS:
        verb = VERBS[name]
        docstring = f"{verb.does}\n\n    {PROGRAM} {verb.example}"
        call = Invocation(
            program=f"{PROGRAM} {name}",
            arguments=tuple(arguments),
            docstring=docstring,
            name_commands=name_commands,
        )
        _run(verb, call)
    else:
        print(
            f"RecipeError: {name!r} is not a verb of {PROGRAM}{suggest(name, VERBS)}; the verbs "
            f"are: {', '.join(VERBS)}. To see what they do: {PROGRAM} --help",
            file=sys.stderr,
        )
        sys.exit(RecipeError.exit_code)


def format_help() -> str:
    """Format the verbs, each with an example."""
    verbs = [line for name, verb in VERBS.items() for line in _format_verb(name, verb)]
    return "\n".join(
        [
            f"usage: {PROGRAM} VERB [OPTIONS]",
            "",
            "Train segmentation models with sharp boundaries, from a folder of photos to a",
            "registered model.",
            "",
            *verbs,
            f"The options of a verb: {PROGRAM} VERB --help. The version: {PROGRAM} --version",
        ]
    )


def list_recipes() -> dict[str, str]:
    """Return the first line of each recipe's docstring, by the name of its file in jobs/."""
    return _list_files("*.py", calls="main(R")


def list_sweeps() -> dict[str, str]:
    """Return the first line of each sweep's docstring, by the name that users type."""
    files = _list_files(f"{SWEEP_PREFIX}*.py", calls="main_sweep(")
    return {name.removeprefix(SWEEP_PREFIX): line for name, line in files.items()}


def _list_files(pattern: str, *, calls: str) -> dict[str, str]:
    # Read, not imported: that would take seconds.
    texts = {path.stem: path.read_text() for path in sorted(FOLDER.glob(pattern))}
    return {
        stem: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        for stem, text in texts.items()
        if f"\n    {calls}" in text
    }


def _format_verb(name: str, verb: Verb) -> list[str]:
    return [f"  {name:11} {verb.does}", f"{'':14}{PROGRAM} {verb.example}", ""]


def _print_recipes(
    call: Invocation, recipes: Mapping[str, str], *, usage: str, more: str = ""
) -> None:
    """Print the recipes of a verb, or refuse a call that names none but has options."""
    given = [argument for argument in call.arguments if argument not in (*_HELP, "--list")]
    if given:
        raise RecipeError(
            f"no recipe is given before {given[0]}; type: {call.program} RECIPE {' '.join(given)}. "
            f"To list the recipes: {call.program} --help"
        )
    table = format_table([(f"  {name}", line) for name, line in recipes.items()])
    lines = [f"usage: {call.program} {usage}", "", call.docstring, "", "recipes:", *table]
    last = f"\nThe options of a recipe: {call.program} RECIPE --help"
    _print_quietly("\n".join([*lines, *([more] if more else []), last]))


def _find_recipe(
    call: Invocation, recipes: Mapping[str, str], *, prefix: str = ""
) -> tuple[ModuleType, Invocation]:
    """Import the recipe that the first argument names; return it with the other arguments."""
    given, *arguments = call.arguments
    name = given.removeprefix("jobs/").removesuffix(".py").removeprefix(prefix)
    if name not in recipes:
        raise RecipeError(
            f"{given!r} is not a recipe of {call.program}{suggest(name, recipes)}; the recipes "
            f"are: {', '.join(recipes)}. To see what they are: {call.program} --help"
        )
    module = importlib.import_module(f"jobs.{prefix}{name}")
    named = replace(call, program=f"{call.program} {name}", arguments=tuple(arguments))
    return module, _describe(named, module)


def _describe(call: Invocation, module: ModuleType) -> Invocation:
    """Use the docstring of a job as help, with its commands as users of `bsm` type them."""
    return replace(call, docstring=name_commands(module.__doc__ or ""))


def name_commands(text: str) -> str:
    """Write the commands in a text as users of `bsm` type them, but those for `ray job submit`."""
    return re.sub(r"(?<!-- )python jobs/(\w+)\.py", _rename_command, text)


def _rename_command(found: re.Match[str]) -> str:
    job = found[1]
    if job in VERBS:
        return f"{PROGRAM} {job}"
    if job.startswith(SWEEP_PREFIX):
        return f"{PROGRAM} sweep {job.removeprefix(SWEEP_PREFIX)}"
    return f"{PROGRAM} train {job}" if job in list_recipes() else found[0]


def _run(verb: Verb, call: Invocation) -> None:
    """Run a verb; its own job reports all errors but those about the recipe's name."""
    try:
        verb.run(call)
    except RecipeError as error:
        print(name_commands(f"{type(error).__name__}: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)


def _read_version() -> str:
    try:
        return f"{PROGRAM} {metadata.version('boundary-squeeze')}"
    except metadata.PackageNotFoundError:
        return f"{PROGRAM}, not installed: run from {FOLDER.parent}"


def _print_quietly(text: str) -> None:
    """Print, and end without a word if nobody reads any more, as after `| head -1`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
