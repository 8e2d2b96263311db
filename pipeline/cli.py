"""The command line of every job: arguments, errors, the RESULT line and the exit code.

Training jobs call `main(ROWS)`, all others `run_verb(function)`; jobs/command.py calls the same
functions for `bsm VERB`. Bad input ends with an error
message and exit code 2 before anything expensive starts. The last line of standard output is
`RESULT {json}`, for scripts.
"""

import dataclasses
import difflib
import functools
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Generic, NoReturn, TypeAlias, TypeVar

import tyro

from bsm.configs.rules import suspend_checks, violations
from pipeline import storage
from pipeline.errors import ClusterError, PipelineError, RecipeError, Terminated
from pipeline.invocation import Invocation, set_up_logging
from pipeline.recipe import (
    OLD_NAMES,
    Model_co,
    Recipe,
    differences,
    fingerprint,
    from_json,
    raise_problems,
    to_json,
)
from pipeline.recipe_json import leaves, to_plain
from pipeline.rows import NOT_RUN, Row, compare_with_paper, format_rows
from pipeline.text import escape_controls, suggest
from pipeline.training.schedule import Fit, find_misfits, follow_steps
from pipeline.tuning.space import Sweep

Result: TypeAlias = dict[str, Any]
"""The result of a job: metrics by name, seconds, paths. JSON can hold it."""

Verb: TypeAlias = Callable[..., Result | None]


INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended."""


def main(job: Recipe | Mapping[str, Row], call: Invocation | None = None) -> None:
    """Train a recipe, with the overrides of the command line.

    Exits with 2 if the command line or the recipe is wrong, and with the error's own code if the
    run fails with a PipelineError.

    Args:
        job: a recipe, or rows by name. The first argument names the row; the default is the first
            row.
        call: how the job was called.
    """
    call = call or Invocation()
    run_job(functools.partial(_train, job, call), call)


def main_file(call: Invocation | None = None) -> None:
    """Train the recipe in the file named by the first argument, with the overrides after it."""
    call = call or Invocation()
    run_job(functools.partial(_train_file, call), call)


def main_sweep(sweep: Sweep, call: Invocation | None = None) -> None:
    """Run a sweep, with the overrides of the command line."""
    call = call or Invocation()
    run_job(functools.partial(_search, sweep, call), call)


def run_verb(verb: Verb | Mapping[str, Verb], call: Invocation | None = None) -> None:
    """Call a function with arguments from the command line, and print its RESULT line.

    Args:
        verb: a function whose parameters are the flags, described in its docstring, or several
            functions by subcommand.
        call: how the job was called.
    """
    call = call or Invocation()
    run_job(functools.partial(_call_verb, verb, call), call)


def parse_recipe(
    recipe: Recipe,
    arguments: Sequence[str],
    *,
    description: str = "",
    program: str | None = None,
    fit: Fit = follow_steps,
) -> tuple[Recipe, bool]:
    """Apply overrides such as `--optim.steps 10` to a recipe.

    Args:
        recipe: the recipe to override.
        arguments: the command line.
        description: text for --help.
        program: name in the usage; None is the running file's.
        fit: derives what the user did not set.

    Returns:
        The recipe, and whether --print-recipe was given.

    Raises:
        RecipeError: values break rules; all of them in one message.
        SystemExit: with 2 for an unknown flag or a value of the wrong type, with 0 after --help.
    """
    flags = _RecipeFlags(recipe=recipe)
    parsed = _parse(flags, arguments, description=description, program=program)
    raise_problems(violations(parsed.recipe))
    return _fit(recipe, parsed, arguments, fit), parsed.print_recipe


def parse_sweep(
    sweep: Sweep, arguments: Sequence[str], *, description: str = "", program: str | None = None
) -> tuple[Sweep, bool, bool]:
    """Apply overrides to a sweep: those of its recipe, and --trials, --parallel and --resume.

    For the arguments see `parse_recipe`.

    Returns:
        The sweep, whether --resume was given, and whether --print-recipe was.

    Raises:
        RecipeError: values break rules.
        SystemExit: see `parse_recipe`.
    """
    flags = _SweepFlags(recipe=sweep.recipe, trials=sweep.trials, parallel=sweep.parallel)
    parsed = _parse(flags, arguments, description=description, program=program)
    with suspend_checks():
        changed = dataclasses.replace(
            sweep, recipe=parsed.recipe, trials=parsed.trials, parallel=parsed.parallel
        )
    raise_problems([problem.removeprefix("recipe.") for problem in violations(changed)])
    fitted = _fit(sweep.recipe, parsed, arguments, follow_steps)
    return dataclasses.replace(changed, recipe=fitted), parsed.resume, parsed.print_recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class _RecipeFlags(Generic[Model_co]):
    recipe: Annotated[Recipe[Model_co], tyro.conf.arg(name="")]
    print_recipe: bool = False
    """Print the whole recipe as JSON and stop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SweepFlags(_RecipeFlags[Model_co]):
    trials: int
    """Number of trials, including those that are stopped early."""
    parallel: int
    """Largest number of trials at once; 0 is the capacity of the cluster."""
    resume: bool = False
    """Resume the sweep of this name."""


_Flags = TypeVar("_Flags", bound=_RecipeFlags[Any])


def _parse(
    flags: _Flags, arguments: Sequence[str], *, description: str, program: str | None
) -> _Flags:
    _reject_misplaced_flags(flags.recipe, arguments)
    # The flags are those of the recipe's own model.
    kind: Any = type(flags)
    # Checks are suspended because tyro stops at the first one that fails.
    with suspend_checks():
        parsed: _Flags = tyro.cli(
            kind[type(flags.recipe.model)],
            default=flags,
            args=arguments,
            description=description or None,
            prog=program,
        )
    return parsed


def _fit(
    declared: Recipe, parsed: _RecipeFlags[Any], arguments: Sequence[str], fit: Fit
) -> Recipe[Any]:
    """Let what nobody set follow from the rest, such as the schedule from --optim.steps; say so."""
    flags = {argument.partition("=")[0].removeprefix("--") for argument in arguments}
    given = {flag.replace("-", "_") for flag in flags}
    fitted, notices = fit(declared, parsed.recipe, given=given)
    for notice in notices:
        if parsed.print_recipe:
            print(notice, file=sys.stderr)  # noqa: T201  standard output is the recipe
        else:
            logging.getLogger(__name__).info("%s", notice)
    return fitted


def _reject_misplaced_flags(recipe: Recipe, arguments: Sequence[str]) -> None:
    """Name the right flag for one that was renamed or is in the wrong section; tyro does not."""
    known = leaves(to_plain(recipe))
    problems = []
    for argument in arguments:
        flag = argument.partition("=")[0]
        path = flag.removeprefix("--").replace("-", "_").replace(".no_", ".")
        section, dot, name = path.rpartition(".")
        if not (flag.startswith("--") and dot) or path in known:
            continue
        if path in OLD_NAMES:
            right = f"{section}.{OLD_NAMES[path]}"
        else:
            right = _find_in_other_section(section, name, known)
        if right:
            right = "--" + right.replace("_", "-")
            problems.append(f"unknown flag {flag}; perhaps you meant {right}")
    raise_problems(problems)


def _find_in_other_section(section: str, name: str, known: Collection[str]) -> str:
    """Return the path of a similar field; tyro itself suggests those of the same section."""
    # The section of the right field may be in the name: --scale.checkpoint-every.
    by_name = {path.replace(".", "_"): path for path in known}
    by_name |= {path.rpartition(".")[2]: path for path in known}
    siblings = [path.rpartition(".")[2] for path in known if path.startswith(f"{section}.")]
    if not siblings or difflib.get_close_matches(name, siblings, n=1):
        return ""
    near = difflib.get_close_matches(name, by_name, n=1)
    return by_name[near[0]] if near else ""


def _train(job: Recipe | Mapping[str, Row], call: Invocation) -> Result | None:
    if isinstance(job, Recipe):
        return train_row(Row(job), call)
    if "--list" in call.arguments:
        print("\n".join([*format_rows(job), "", NOT_RUN]))  # noqa: T201  the answer to --list
        return None
    row, arguments = _choose_row(job, call)
    described = _describe_rows(job, call)
    return train_row(row, dataclasses.replace(call, arguments=arguments, docstring=described))


def _choose_row(rows: Mapping[str, Row], call: Invocation) -> tuple[Row, tuple[str, ...]]:
    """Return the row that the first argument names, or the first row, and the other arguments."""
    arguments = call.arguments
    if not arguments or arguments[0].startswith("-"):
        return next(iter(rows.values())), arguments
    name = arguments[0]
    if name not in rows:
        raise RecipeError(
            f"{name!r} is not a row of {call.program}{suggest(name, rows)}; the first argument is "
            f"one of: {', '.join(rows)}. To list them: {call.command} --list"
        )
    return rows[name], arguments[1:]


def _describe_rows(rows: Mapping[str, Row], call: Invocation) -> str:
    # Indented lines stay lines.
    table = "\n".join(f"    {line}" for line in format_rows(rows))
    usage = f"The first argument names a row: {call.program} [ROW] [OPTIONS]"
    return f"{call.docstring}\n\n{usage}\n\n{table}\n\n{NOT_RUN}"


def train_row(row: Row, call: Invocation, *, fit: Fit = follow_steps) -> Result | None:
    """Train the recipe of a row with the overrides of the command line; see `parse_recipe`."""
    recipe, wants_print = parse_recipe(
        row.recipe, call.arguments, description=call.docstring, program=call.program, fit=fit
    )
    for misfit in find_misfits(recipe):
        print(f"schedule: {misfit}", file=sys.stderr)  # noqa: T201  standard output may be the recipe
    if wants_print:
        print(to_json(recipe))  # noqa: T201  the answer to --print-recipe
        return None
    _check_paths(recipe)
    log = logging.getLogger(__name__)
    log.info("recipe %s, fingerprint %s", recipe.name, fingerprint(recipe))
    log.info("overrides: %s", "; ".join(differences(row.recipe, recipe)) or "none")
    from pipeline.training import launch  # noqa: PLC0415  imports ray, only for a valid recipe

    result = launch.run(recipe, row=row)
    for line in compare_with_paper(row, recipe, result):
        log.info("%s", line)
    return result


def _search(declared: Sweep, call: Invocation) -> Result | None:
    sweep, resume, wants_print = parse_sweep(
        declared, call.arguments, description=call.docstring, program=call.program
    )
    if wants_print:
        print(to_json(sweep.recipe))  # noqa: T201  the answer to --print-recipe
        return None
    _check_paths(sweep.recipe)
    changed = differences(declared.recipe, sweep.recipe)
    logging.getLogger(__name__).info("overrides: %s", "; ".join(changed) or "none")
    from pipeline.tuning.sweep import run_sweep  # noqa: PLC0415  imports ray

    return run_sweep(sweep, resume=resume)


def _train_file(call: Invocation) -> Result | None:
    arguments = call.arguments
    if arguments[:1] in (("-h",), ("--help",)):
        print(  # noqa: T201  the answer to --help
            f"usage: {call.program} FILE [OPTIONS]\n\n{call.docstring}\n"
            f"The options are those of the file's recipe: {call.program} FILE --help"
        )
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise RecipeError(
            f"no recipe file is given; the first argument is a run's recipe.json or a sweep's "
            f"winner.json: {call.command} runs/NAME/recipe.json"
        )
    uri = arguments[0]
    if not storage.exists(uri):
        raise RecipeError(f"file not found: {uri}; give a recipe file, local or in a bucket")
    try:
        recipe = from_json(storage.read_bytes(uri))
    except RecipeError as error:
        raise RecipeError(
            f"{uri}: {error}\nThe first argument is a run's recipe.json or a sweep's winner.json."
        ) from None
    return train_row(Row(recipe), dataclasses.replace(call, arguments=arguments[1:]))


def _check_paths(recipe: Recipe) -> None:
    """Reject relative paths in a job that `ray job submit` started.

    Raises:
        RecipeError: a path is relative.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    paths = {"--storage": recipe.storage, "--data.root": recipe.data.root}
    relative = [
        f"{flag} {path}" for flag, path in paths.items() if "://" not in path and path[:1] != "/"
    ]
    if relative:
        raise RecipeError(
            f"relative path in a submitted job: {', '.join(relative)}. The job runs in a temporary "
            "copy of the working directory, which is deleted. Give an absolute path, or a URI that "
            "every node can reach, such as s3://bucket/folder"
        )


def _call_verb(verb: Verb | Mapping[str, Verb], call: Invocation) -> Result | None:
    bound: Callable[[], Result | None]
    if isinstance(verb, Mapping):
        _check_subcommand(verb, call)
        bound = tyro.extras.subcommand_cli_from_dict(
            {name: _bind_arguments(function) for name, function in verb.items()},
            args=call.arguments,
            prog=call.program,
            description=call.docstring or None,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    else:
        bound = tyro.cli(
            _bind_arguments(verb),
            args=call.arguments,
            prog=call.program,
            description=call.docstring or None,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    return bound()


def _check_subcommand(verbs: Collection[str], call: Invocation) -> None:
    """Refuse an unknown subcommand in one line; the parser would list all flags of all others."""
    first = call.arguments[0] if call.arguments else ""
    if first and not first.startswith("-") and first not in verbs:
        raise RecipeError(
            f"{first!r} is not a subcommand of {call.command}{suggest(first, verbs)}; there are: "
            f"{', '.join(verbs)}"
        )


def _bind_arguments(function: Verb) -> Callable[..., Callable[[], Result | None]]:
    """Delay the call until after parsing, so that its errors are not reported as usage errors."""

    @functools.wraps(function)
    def bind(*args: object, **kwargs: object) -> Callable[[], Result | None]:
        return functools.partial(function, *args, **kwargs)

    return bind


def run_job(job: Callable[[], Result | None], call: Invocation) -> None:
    """Run a job, print its RESULT line, and exit with the code of its error.

    Args:
        job: the function to run.
        call: names the commands in errors and log lines as users type them.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Show progress immediately, also in a pipe or a job's log.
        sys.stdout.reconfigure(line_buffering=True)
    set_up_logging(call)
    try:
        result = job()
        if result is not None:
            _stop_ray()
            print("RESULT " + json.dumps(result), flush=True)  # noqa: T201
    except PipelineError as error:
        _fail(error, call)
    except Terminated as error:
        _stop_ray()
        print(error, file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _stop_ray()
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        if not _is_reader_gone():
            raise
        sys.exit(1)


def _is_reader_gone() -> bool:
    """Check whether nobody reads standard output any more, as after `--help | head`."""
    try:
        sys.stdout.flush()
        print(flush=True)  # noqa: T201
    except BrokenPipeError:
        # Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _fail(error: PipelineError, call: Invocation) -> NoReturn:
    # A remote task raises a subclass whose text is the worker's traceback; its cause is our error.
    cause = getattr(error, "cause", None) or error
    _stop_ray()
    sys.stdout.flush()
    # Errors quote names and values of files from outside.
    text = escape_controls(call.name_commands(f"{type(cause).__name__}: {cause}"))
    print(text, file=sys.stderr, flush=True)  # noqa: T201
    if isinstance(cause, ClusterError):
        print("RESULT " + json.dumps(cause.result), flush=True)  # noqa: T201
    sys.exit(error.exit_code)


def _stop_ray() -> None:
    """Disconnect, so that no worker's output arrives after the last line."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
