"""The frame that every job runs in: command line in, progress, one RESULT line, an exit code.

Training jobs call `main(RECIPE)`, the verbs call `run_verb(function)`. In both, bad input ends with
a sentence for the user and exit code 2 before anything expensive starts; the last line of standard
output is `RESULT {json}`, so a script can read what a person reads above it.
"""

import dataclasses
import difflib
import functools
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias, get_type_hints

import tyro

from pipeline import storage
from pipeline.errors import ClusterError, PipelineError, RecipeError
from pipeline.recipe import Recipe, differences, fingerprint, from_dict, from_json, to_json
from pipeline.recipe_json import to_plain
from pipeline.tuning.space import Sweep

Result: TypeAlias = dict[str, Any]
"""What a job returns: metrics by name, seconds, paths. It must fit into JSON."""

Verb: TypeAlias = Callable[..., Result]

Kind: TypeAlias = Any
"""A dataclass that exists only while the command line is parsed."""

INTERRUPTED = 130
"""What shells report for a program that ended by Ctrl-C."""


def main(recipe: Recipe | Mapping[str, Recipe]) -> None:
    """Train the recipe, with the fields that the command line overrides.

    Ends the process with 2 when the command line or the recipe is wrong, and with the error's own
    code when the run fails in a way that is written for the user.

    Args:
        recipe: what the job file declares; or several, of which the first argument names one.
    """
    _run_in_frame(functools.partial(_train, recipe))


def main_of_file() -> None:
    """Train the recipe in the file that the first argument names, with the overrides after it."""
    _run_in_frame(_train_file)


def main_of_sweep(sweep: Sweep) -> None:
    """Search as a sweep says, with the fields that the command line overrides.

    Args:
        sweep: what the job file declares.
    """
    _run_in_frame(functools.partial(_search, sweep))


def run_verb(verb: Verb | Mapping[str, Verb]) -> None:
    """Call a function with typed arguments from the command line, and print what it returns.

    Args:
        verb: a function whose parameters become flags and whose docstring becomes the help, or
            several of them by the name of their subcommand. It returns the dict of the RESULT line.
    """
    _run_in_frame(functools.partial(_call_verb, verb))


def parse_recipe(recipe: Recipe, arguments: list[str]) -> tuple[Recipe, bool]:
    """Apply overrides such as `--optim.steps 10` to a recipe.

    Returns:
        The recipe, and whether --print-recipe was given.

    Raises:
        RecipeError: values break rules; all of them in one message.
        SystemExit: with 2 for an unknown flag or a value of the wrong type, with 0 after --help.
    """
    plain = _parsed_recipe(recipe, arguments, extra=[("print_recipe", bool, _PRINT_RECIPE)])
    wants_print = plain.pop("print_recipe")
    return from_dict(plain), wants_print


def parse_sweep(sweep: Sweep, arguments: list[str]) -> tuple[Sweep, bool, bool]:
    """Apply overrides to a sweep: those of its recipe, and --trials, --parallel and --resume.

    Returns:
        The sweep, whether --resume was given, and whether --print-recipe was.

    Raises:
        RecipeError: values break rules.
        SystemExit: see `parse_recipe`.
    """
    flags = [
        ("trials", int, _flag("Trials, with those that are stopped early.", default=sweep.trials)),
        (
            "parallel",
            int,
            _flag("Trials at once; 0 takes all there is room for.", default=sweep.parallel),
        ),
        ("resume", bool, _flag("Go on with the sweep of this name.", default=False)),
        ("print_recipe", bool, _PRINT_RECIPE),
    ]
    plain = _parsed_recipe(sweep.recipe, arguments, extra=flags)
    trials, parallel, resume, wants_print = (plain.pop(name) for name, _, _ in flags)
    changed = dataclasses.replace(sweep, recipe=from_dict(plain), trials=trials, parallel=parallel)
    return changed, resume, wants_print


def _parsed_recipe(
    recipe: Recipe, arguments: list[str], *, extra: list[tuple[str, Any, Any]]
) -> dict[str, Any]:
    loose = _without_rules(recipe, extra=extra)
    parsed = tyro.cli(
        loose,
        default=_copy(recipe, loose),
        args=arguments,
        description=_job_docstring(),
    )
    plain: dict[str, Any] = to_plain(parsed)
    return plain


def _flag(text: str, *, default: object) -> Any:  # noqa: ANN401  a dataclass field
    return dataclasses.field(default=default, metadata={"help": text})


def _train(job: Recipe | Mapping[str, Recipe]) -> Result | None:
    return _train_with(*_named(job, sys.argv[1:]))


def _train_with(declared: Recipe, arguments: list[str]) -> Result | None:
    recipe, wants_print = parse_recipe(declared, arguments)
    if wants_print:
        print(to_json(recipe))  # noqa: T201  the answer to --print-recipe
        return None
    _check_paths(recipe)
    log = logging.getLogger(__name__)
    log.info("recipe %s, fingerprint %s", recipe.name, fingerprint(recipe))
    log.info("overrides: %s", "; ".join(differences(declared, recipe)) or "none")
    from pipeline.training import launch  # noqa: PLC0415  Ray comes in only for a recipe without faults

    return launch.run(recipe)


def _search(declared: Sweep) -> Result | None:
    sweep, resume, wants_print = parse_sweep(declared, sys.argv[1:])
    if wants_print:
        print(to_json(sweep.recipe))  # noqa: T201  the answer to --print-recipe
        return None
    _check_paths(sweep.recipe)
    changed = differences(declared.recipe, sweep.recipe)
    logging.getLogger(__name__).info("overrides: %s", "; ".join(changed) or "none")
    from pipeline.tuning.sweep import run_sweep  # noqa: PLC0415  imports ray

    return run_sweep(sweep, resume=resume)


def _train_file() -> Result | None:
    program, arguments = os.path.relpath(sys.argv[0]), sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(  # noqa: T201  the answer to --help
            f"usage: {program} FILE [OPTIONS]\n\n{_job_docstring() or ''}\n"
            f"The options are those of the file's recipe: {program} FILE --help"
        )
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise RecipeError(
            f"no recipe is named; the first argument is a recipe's file, such as a run's "
            f"recipe.json or a sweep's winner.json: python {program} runs/NAME/recipe.json"
        )
    uri = arguments.pop(0)
    if not storage.exists(uri):
        raise RecipeError(f"there is no file {uri}; name a recipe's file, local or in a bucket")
    try:
        # Of what is no text, reading JSON says so.
        recipe = from_json(storage.read_bytes(uri).decode(errors="replace"))
    except RecipeError as error:
        raise RecipeError(
            f"{uri}: {error}\nThe first argument is a run's recipe.json or a sweep's winner.json."
        ) from None
    return _train_with(recipe, arguments)


def _named(job: Recipe | Mapping[str, Recipe], arguments: list[str]) -> tuple[Recipe, list[str]]:
    """Take the recipe that the first argument names, where a job declares several."""
    if isinstance(job, Recipe):
        return job, arguments
    program, name = os.path.relpath(sys.argv[0]), arguments[0] if arguments else ""
    if name in {"-h", "--help"}:
        print(  # noqa: T201  the answer to --help
            f"usage: {program} ROW [OPTIONS]\n\n{_job_docstring() or ''}\nROW is one of: "
            f"{', '.join(job)}.\nThe options of a row: {program} {next(iter(job))} --help"
        )
        sys.exit(0)
    if name not in job:
        told = f"{name!r} is no row of this job" if name else "no row is named"
        if near := difflib.get_close_matches(name, job, n=1):
            told += f", perhaps you meant {near[0]}"
        raise RecipeError(
            f"{told}; the first argument is one of: {', '.join(job)}. "
            f"Such as: python {program} {next(iter(job))} --print-recipe"
        )
    return job[name], arguments[1:]


def _check_paths(recipe: Recipe) -> None:
    """A job that `ray job submit` started runs in a temporary copy of the working directory."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    paths = {"--storage": recipe.storage, "--data.root": recipe.data.root}
    relative = [
        f"{flag} {path}" for flag, path in paths.items() if "://" not in path and path[:1] != "/"
    ]
    if relative:
        raise RecipeError(
            f"relative in a submitted job: {', '.join(relative)}. The job runs in a temporary copy "
            "of the working directory, so what lies there is lost. Give an absolute path, or a URI "
            "that every node reaches, such as s3://bucket/folder"
        )


def _call_verb(verb: Verb | Mapping[str, Verb]) -> Result:
    call: Callable[[], Result]
    if isinstance(verb, Mapping):
        call = tyro.extras.subcommand_cli_from_dict(
            {name: _parsed(function) for name, function in verb.items()},
            args=sys.argv[1:],
            description=_job_docstring(),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    else:
        call = tyro.cli(_parsed(verb), args=sys.argv[1:], config=(tyro.conf.FlagCreatePairsOff,))
    return call()


def _parsed(function: Verb) -> Callable[..., Callable[[], Result]]:
    """Parse now and call later: an error of the call is not an error of a flag."""

    @functools.wraps(function)
    def bind(*args: object, **kwargs: object) -> Callable[[], Result]:
        return functools.partial(function, *args, **kwargs)

    return bind


def _run_in_frame(call: Callable[[], Result | None]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Progress shows at once, also in a pipe or a job's log.
        sys.stdout.reconfigure(line_buffering=True)
    _set_up_logging()
    try:
        result = call()
    except PipelineError as error:
        _fail(error)
    except KeyboardInterrupt:
        _stop_ray()
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(INTERRUPTED)
    if result is not None:
        _stop_ray()
        print("RESULT " + json.dumps(result), flush=True)  # noqa: T201


def _fail(error: PipelineError) -> NoReturn:
    # A remote task raises a subclass whose text is the worker's traceback; its cause is our error.
    told = getattr(error, "cause", None) or error
    _stop_ray()
    sys.stdout.flush()
    print(f"{type(told).__name__}: {told}", file=sys.stderr, flush=True)  # noqa: T201
    if isinstance(told, ClusterError):
        print("RESULT " + json.dumps(told.result), flush=True)  # noqa: T201
    sys.exit(error.exit_code)


def _stop_ray() -> None:
    """Disconnect, so that no worker's output arrives after the last line."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def _set_up_logging() -> None:
    """Plain lines on standard output: ours from INFO on, everyone else's warnings."""
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    for ours in ("bsm", "pipeline", "jobs", "__main__"):
        logging.getLogger(ours).setLevel(logging.INFO)


def _job_docstring() -> str | None:
    """The first docstring of the file that runs, shown by --help."""
    return getattr(sys.modules.get("__main__"), "__doc__", None)


_PRINT_RECIPE = _flag("Print the whole recipe as JSON and stop.", default=False)


def _without_rules(value: Kind, *, extra: list[tuple[str, Any, Any]] | None = None) -> Kind:
    """Derive a dataclass that takes whatever has the types of a value's fields.

    The parser stops at the first error that a constructor raises. With the rules left out it gets
    to the end, and `from_dict` then says everything that is wrong at once. Where a field may hold
    several dataclasses, it has the one that the value has: a job's flags are those of its model.
    """
    kind = type(value)
    items = {f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}
    parts = [
        (name, _without_rules(item))
        for name, item in items.items()
        if dataclasses.is_dataclass(item)
    ]
    return dataclasses.make_dataclass(
        kind.__name__,
        # The default is never used: parsing starts from the job's own recipe.
        [*((name, part, None) for name, part in parts), *(extra or [])],
        bases=(kind,),
        namespace={
            "__post_init__": lambda _: None,
            "__doc__": kind.__doc__,
            "__module__": kind.__module__,
        },
        frozen=True,
        kw_only=True,
    )


def _copy(value: Kind, kind: Kind) -> Kind:
    hints = get_type_hints(kind)
    items = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return kind(
        **{
            name: _copy(item, hints[name]) if dataclasses.is_dataclass(item) else item
            for name, item in items.items()
        }
    )
