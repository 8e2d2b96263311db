"""Which version is the champion, and which were before it: a log that two writers cannot corrupt.

The alias says what is pulled, a log in the registered model's tags says how it came to be: one
entry for each move, numbered. MLflow sets tags and aliases one by one and locks nothing, so a move
is claimed first: an entry is written under the next number with a mark of its own, and read back.
Who then sees another entry of that number takes the own one away and decides again; one of two sees
the other for sure, because each writes before it reads. Then the alias follows, and only when it
has may the next number be claimed.

An alias that was moved by other means is found at the next move and goes into the log, too.
"""

import json
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from pipeline.errors import RegistryError
from pipeline.registry.versions import CHAMPION

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = f"{CHAMPION}."
_ATTEMPTS = 30
_PATIENCE_S = 5.0
"""A move takes two requests; what is unsettled for so long was cut off."""
_PAUSE_S = 0.2

How = Literal["promoted", "forced", "rolled back", "found"]
"""found: by other means than this package, or by a move that was cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """The alias went to a version."""

    version: str
    before: str
    """The champion until then; "" for none."""
    how: How
    text: str
    """The numbers that decided, or what else there is to say."""
    reason: str = ""
    """Why it was forced, in the words of who forced it."""
    time_ms: int = 0


Decide = Callable[[str, "Sequence[Move]"], Move | None]
"""From the champion ("" for none) and the log to a move, or None to leave it. May be asked again,
when the champion has changed meanwhile."""


class _Entry(NamedTuple):
    key: str
    number: int
    move: Move


def moves(store: "MlflowClient", name: str) -> list[Move]:
    """Read the log of a model, oldest first."""
    return [entry.move for entry in _entries(store, name)]


def champion_of(store: "MlflowClient", name: str) -> str:
    """Give the version that the alias names now; "" for none."""
    aliases: dict[str, str] = dict(store.get_registered_model(name).aliases)
    return str(aliases.get(CHAMPION, ""))


def move_champion(store: "MlflowClient", name: str, decide: Decide) -> Move | None:
    """Move the alias to where `decide` says, and log it.

    Of several at once each decides against the champion that the one before it left.

    Returns:
        The move, or None where there was none to make.

    Raises:
        RegistryError: others moved the alias all the time.
    """
    for _ in range(_ATTEMPTS):
        entries = _settled(store, name)
        champion = champion_of(store, name)
        head = entries[-1].move.version if entries else ""
        number = entries[-1].number + 1 if entries else 1
        if champion != head:
            text = f"the alias was at version {champion or 'none'}, the log at {head or 'none'}"
            found = Move(version=champion, before=head, how="found", text=text)
            _claim(store, name, number, found)
            continue
        move = decide(champion, [entry.move for entry in entries])
        if move is None or _claim(store, name, number, move):
            return move
    raise RegistryError(
        f"the {CHAMPION} of {name} is being moved by others all the time; nothing was changed, try "
        "again"
    )


def before_champion(log: Sequence[Move]) -> str:
    """Give the version to which a rollback returns; "" for none.

    Each rollback goes one further back: it takes the last promotion that was not rolled back.
    """
    stack: list[str] = []
    for move in log:
        if move.how == "rolled back":
            del stack[-1:]
        elif move.version:
            stack.append(move.version)
    if log and log[-1].version:
        del stack[-1:]
    return stack[-1] if stack else ""


def _entries(store: "MlflowClient", name: str) -> list[_Entry]:
    tags: dict[str, str] = dict(store.get_registered_model(name).tags)
    found = []
    for key, value in tags.items():
        if key.startswith(_TAG):
            number = int(key.removeprefix(_TAG).partition(".")[0])
            found.append(_Entry(key, number, Move(**json.loads(value))))
    return sorted(found, key=lambda entry: (entry.number, entry.move.time_ms))


def _settled(store: "MlflowClient", name: str) -> list[_Entry]:
    """Wait until no move is under way; what was cut off is taken out of the log."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        entries = _entries(store, name)
        champion = champion_of(store, name)
        numbers = [entry.number for entry in entries]
        is_clear = len(set(numbers)) == len(numbers)
        if is_clear and champion == (entries[-1].move.version if entries else ""):
            return entries
        if time.monotonic() > end:
            break
        _pause()
    for entry in entries:
        # Of claims to one number, that which the alias followed was the one that held.
        if numbers.count(entry.number) > 1 and entry.move.version != champion:
            store.delete_registered_model_tag(name, entry.key)
    return _entries(store, name)


def _claim(store: "MlflowClient", name: str, number: int, move: Move) -> bool:
    """Make a move, unless another one has the number."""
    key = f"{_TAG}{number:06d}.{secrets.token_hex(4)}"
    stamped = asdict(move) | {"time_ms": time.time_ns() // 1_000_000}
    began = time.monotonic()
    store.set_registered_model_tag(name, key, json.dumps(stamped))
    others = [each.number for each in _entries(store, name) if each.key != key]
    # Where the store was so slow that others gave up waiting, they may have gone on by now.
    slow = time.monotonic() - began > _PATIENCE_S
    if number in others or (slow and any(other > number for other in others)):
        store.delete_registered_model_tag(name, key)
        _pause()
        return False
    if move.how != "found":
        try:
            # Nobody claims the next number before the alias is here: this is the last word on it.
            store.set_registered_model_alias(name, CHAMPION, move.version)
        except Exception:
            store.delete_registered_model_tag(name, key)
            raise
    return True


def _pause() -> None:
    # Not in step with another that waits for the same.
    time.sleep(random.uniform(0.5, 1.5) * _PAUSE_S)  # noqa: S311  no secret
