#!/usr/bin/env python
"""Print the lines that let the Tab key complete `bsm`, for the start file of your shell.

    bsm completion bash >> ~/.bashrc
    bsm completion zsh >> ~/.zshrc
    bsm completion fish > ~/.config/fish/completions/bsm.fish

`python jobs/completion.py bash` prints the same. Verbs, recipes, rows and options are completed.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import tyro

from jobs import command

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

Shell = Literal["bash", "zsh", "fish"]

_BASH = """\
_bsm() {
    local IFS=$'\\n'
    COMPREPLY=($(bsm --complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _bsm bsm
"""

_SCRIPTS: dict[Shell, str] = {
    "bash": _BASH,
    # compinit may have run already; twice does no harm.
    "zsh": f"autoload -Uz compinit bashcompinit && compinit && bashcompinit\n{_BASH}",
    "fish": """\
complete -c bsm -a "(bsm --complete (commandline -opc)[2..] (commandline -ct) 2>/dev/null)"
""",
}


def completion(*, shell: Annotated[Shell, tyro.conf.Positional]) -> None:
    """Print the lines that let the Tab key complete `bsm`.

    Args:
        shell: your shell.
    """
    print(_SCRIPTS[shell], end="")


def complete(words: Sequence[str]) -> list[str]:
    """List the words that can stand in place of the last one.

    Args:
        words: after `bsm`; the last one is incomplete, or empty.
    """
    *before, word = words or [""]
    known = _list_words(before) if before else [*command.VERBS, "--help", "--version"]
    return [each for each in known if each.startswith(word)]


def _list_words(before: Sequence[str]) -> Iterable[str]:
    verb, *rest = before
    if verb in ("train", "sweep"):
        recipes = command.list_recipes() if verb == "train" else command.list_sweeps()
        return _list_recipe_words(verb, rest, recipes) if rest else recipes
    if verb not in command.VERBS:
        return []
    module = importlib.import_module(f"jobs.{verb}")
    if verb == "finetune":
        return [*_list_recipe_flags(module.OPTIONS), "--from", "--print-recipe", "--help"]
    verbs = getattr(module, "VERBS", {})
    if verbs and not rest:
        return verbs
    called = verbs.get(rest[0]) if verbs else getattr(module, verb)
    return [*_list_flags(called), "--help"] if called else []


def _list_recipe_words(verb: str, rest: Sequence[str], recipes: Iterable[str]) -> list[str]:
    name, *more = rest
    if name not in recipes:
        return []
    module = importlib.import_module(f"jobs.{command.SWEEP_PREFIX * (verb == 'sweep')}{name}")
    rows = getattr(module, "ROWS", {})
    if verb == "sweep":
        recipe, own = module.SWEEP.recipe, ["--trials", "--parallel", "--resume"]
    else:
        chosen = next((rows[each] for each in more if each in rows), None)
        recipe, own = chosen.recipe if chosen else module.RECIPE, ["--list"] if rows else []
    flags = _list_recipe_flags(recipe)
    return [*([] if more else rows), *flags, *own, "--print-recipe", "--help"]


def _list_recipe_flags(recipe: "Recipe") -> list[str]:
    from pipeline.recipe_json import leaves, to_plain

    return [_to_flag(path) for path in leaves(to_plain(recipe))]


def _list_flags(function: Callable[..., Any]) -> list[str]:
    """List the flags of a function; a parameter that is a config has those of its fields."""
    hints = get_type_hints(function)
    names = []
    for name in inspect.signature(function).parameters:
        is_config = is_dataclass(hints[name])
        names += [each.name for each in fields(hints[name])] if is_config else [name]
    return [_to_flag(name) for name in names]


def _to_flag(path: str) -> str:
    return "--" + path.replace("_", "-")


if __name__ == "__main__":
    from pipeline.cli import run_verb

    run_verb(completion)
