"""Set the champion alias and log every change, safely with concurrent writers.

The alias names the version that users load; a log in the tags of the registered model records its
history, one numbered entry per change. MLflow sets tags and aliases one at a time and locks
nothing, so a writer first claims its change: it writes an entry with the next number and a random
key, and reads the log back. A writer that sees a competing entry withdraws its own and retries. Of
two competing writers at least one sees the other, as each writes before it reads. Then the winner
sets the alias, and the next number can be claimed only after that.

If something else has set the alias, the next change logs that first.
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
_TIMEOUT_S = 5.0
"""A change takes two requests; after this time, an unfinished one counts as aborted."""
_PAUSE_S = 0.2

How = Literal["promoted", "forced", "rolled back", "found"]
"""found: set by something else than this package, or by an aborted change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AliasChange:
    """A change of the champion alias."""

    version: str
    before: str
    """The champion before; "" for none."""
    how: How
    text: str
    """The deciding numbers, or another explanation."""
    reason: str = ""
    """Why it was forced or rolled back, as given by the user."""
    time_ms: int = 0


Decide = Callable[[str, "Sequence[AliasChange]"], AliasChange | None]
"""Maps the champion ("" for none) and the log to a change, or to None for no change. Called again
if the champion has changed meanwhile."""


class _Entry(NamedTuple):
    key: str
    number: int
    change: AliasChange


def read_alias_log(store: "MlflowClient", name: str) -> list[AliasChange]:
    """Read the alias log of a model, oldest first."""
    return [entry.change for entry in _read_entries(store, name)]


def get_champion(store: "MlflowClient", name: str) -> str:
    """Return the version that the alias names now; "" for none."""
    aliases: dict[str, str] = dict(store.get_registered_model(name).aliases)
    return str(aliases.get(CHAMPION, ""))


def set_champion(store: "MlflowClient", name: str, decide: Decide) -> AliasChange | None:
    """Set the alias as `decide` chooses, and log the change.

    Concurrent writers take turns: each decides against the champion that the previous one set.

    Returns:
        The change, or None if there was nothing to change.

    Raises:
        RegistryError: other writers kept changing the alias.
    """
    for _ in range(_ATTEMPTS):
        entries = _settle(store, name)
        champion = get_champion(store, name)
        logged = entries[-1].change.version if entries else ""
        number = entries[-1].number + 1 if entries else 1
        if champion != logged:
            text = f"the alias was at version {champion or 'none'}, the log at {logged or 'none'}"
            found = AliasChange(version=champion, before=logged, how="found", text=text)
            _apply(store, name, number, found)
            continue
        change = decide(champion, [entry.change for entry in entries])
        if change is None or _apply(store, name, number, change):
            return change
    raise RegistryError(
        f"the {CHAMPION} of {name} keeps being changed by others; nothing was changed, try again"
    )


def find_previous_champion(log: Sequence[AliasChange]) -> str:
    """Return the version to roll back to; "" for none.

    Each rollback undoes the last promotion that was not rolled back yet.
    """
    stack: list[str] = []
    for change in log:
        if change.how == "rolled back":
            del stack[-1:]
        elif change.version:
            stack.append(change.version)
    if log and log[-1].version:
        del stack[-1:]
    return stack[-1] if stack else ""


def _read_entries(store: "MlflowClient", name: str) -> list[_Entry]:
    tags: dict[str, str] = dict(store.get_registered_model(name).tags)
    entries = []
    for key, value in tags.items():
        if key.startswith(_TAG):
            number = int(key.removeprefix(_TAG).partition(".")[0])
            entries.append(_Entry(key, number, AliasChange(**json.loads(value))))
    return sorted(entries, key=lambda entry: (entry.number, entry.change.time_ms))


def _settle(store: "MlflowClient", name: str) -> list[_Entry]:
    """Wait until no change is in progress, and remove aborted ones from the log."""
    end = time.monotonic() + _TIMEOUT_S
    while True:
        entries = _read_entries(store, name)
        champion = get_champion(store, name)
        numbers = [entry.number for entry in entries]
        is_clear = len(set(numbers)) == len(numbers)
        if is_clear and champion == (entries[-1].change.version if entries else ""):
            return entries
        if time.monotonic() > end:
            break
        _pause()
    for entry in entries:
        # Of several claims to a number, the one whose version the alias has was applied.
        if numbers.count(entry.number) > 1 and entry.change.version != champion:
            store.delete_registered_model_tag(name, entry.key)
    return _read_entries(store, name)


def _apply(store: "MlflowClient", name: str, number: int, change: AliasChange) -> bool:
    """Claim a number and make the change; False if another writer claimed the number."""
    key = f"{_TAG}{number:06d}.{secrets.token_hex(4)}"
    stamped = asdict(change) | {"time_ms": time.time_ns() // 1_000_000}
    started = time.monotonic()
    store.set_registered_model_tag(name, key, json.dumps(stamped))
    others = [each.number for each in _read_entries(store, name) if each.key != key]
    # If the store was slow, others may have given up waiting and claimed later numbers.
    is_late = time.monotonic() - started > _TIMEOUT_S
    if number in others or (is_late and any(other > number for other in others)):
        store.delete_registered_model_tag(name, key)
        _pause()
        return False
    if change.how != "found":
        try:
            # Nobody claims the next number before this is done, so nothing can overwrite it.
            store.set_registered_model_alias(name, CHAMPION, change.version)
        except Exception:
            store.delete_registered_model_tag(name, key)
            raise
    return True


def _pause() -> None:
    # Random, so that competing writers do not retry in step.
    time.sleep(random.uniform(0.5, 1.5) * _PAUSE_S)  # noqa: S311  no secret
