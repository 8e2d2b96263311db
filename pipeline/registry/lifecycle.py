"""A version's life in the registry: measured, compared, promoted, rolled back, described.

A version becomes the champion by itself when it measured better (`contend`), or because somebody
says so (`promote`): then it is refused where the number that decides falls, unless it is forced
with a reason. Numbers count only where both versions were measured on the same images.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import RegistryError
from pipeline.recipe import from_json
from pipeline.registry.champions import Move, before_champion, champion_of, move_champion, moves
from pipeline.registry.comparison import Comparison, compare, deciding
from pipeline.registry.model_card import Content, card, description
from pipeline.registry.provenance import Measured, Origin, TrainedOn, to_json
from pipeline.registry.versions import (
    CARD_FILE,
    CATEGORIES_FILE,
    CHAMPION,
    EVALUATED_ON_TAG,
    EVALUATIONS_FOLDER,
    ORIGIN_FILE,
    RECIPE_FILE,
    TRAINED_ON_FILE,
    Version,
    add_file,
    find,
    find_all,
    list_files,
    read_file,
    registry_errors,
)
from pipeline.serving.categories import categories_from_json
from pipeline.tracking.stores import client

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

_REASON_TAG = "forced_because"
_COMMAND = "python jobs/models.py"

Measure = Callable[[Version], Measured]
"""Measures a version on images that are the same for all."""


class Decision(NamedTuple):
    """Whether a version is the champion now, and why."""

    uri: str
    """The version, models:/NAME/VERSION."""
    is_champion: bool
    text: str


def evaluations_of(version: Version) -> list[Measured]:
    """Read what was measured of a version; what it was registered with comes first.

    Raises:
        RegistryError: the artifact store does not answer.
    """
    found = [
        Measured.from_json(read_file(version, file))
        for file in list_files(version, EVALUATIONS_FOLDER)
    ]
    registered = version.tags.get(EVALUATED_ON_TAG, "")
    return sorted(found, key=lambda each: each.evaluated_on != registered)


def keep_measured(version: Version, measured: Measured) -> None:
    """Put a measurement among the files of a version; that of the same images is replaced.

    Raises:
        RegistryError: the artifact store does not take it.
    """
    name = hashlib.sha256(measured.evaluated_on.encode()).hexdigest()[:12]
    add_file(version, f"{EVALUATIONS_FOLDER}/{name}.json", to_json(measured).encode())


def comparison_of(
    before: Version, after: Version, *, measure: Measure | None = None
) -> Comparison | None:
    """Compare two versions on the same images; None where there are none.

    Args:
        before: the version that is there.
        after: the one that may take its place.
        measure: measures a version where that is wanted; without it the recorded numbers count.

    Raises:
        RegistryError: the artifact store does not answer.
    """
    if measure is not None:
        return compare(measure(before), measure(after))
    there = evaluations_of(before)
    found = (compare(old, new) for new in evaluations_of(after) for old in there)
    return next((each for each in found if each is not None), None)


def contend(version: Version) -> Decision:
    """Make a version the champion if it measured better than the one there is.

    Raises:
        RegistryError: the registry does not answer.
    """
    here = f"{version.name} version {version.version}"
    said = ""

    def decide(champion: str, _: Sequence[Move]) -> Move | None:
        nonlocal said
        if champion == version.version:
            said = f"{here} is the {CHAMPION} already"
            return None
        if not champion:
            measured = evaluations_of(version)[0]
            key = deciding(measured, measured)
            if not key:
                said = f"{here} is not the {CHAMPION}: nothing that decides was measured"
                return None
            numbers = f"{key} {measured.metrics[key]:.4f}"
            said = f"{here} is the first {CHAMPION}: {numbers}"
            return Move(version=version.version, before="", how="promoted", text=numbers)
        found = comparison_of(_other(version, champion), version)
        if found is None:
            said = (
                f"{here} is not the {CHAMPION}: {incomparable(_other(version, champion), version)}"
            )
            return None
        if found.change > 0:
            said = f"{here} is the new {CHAMPION}: {_numbers(found, champion)}"
            return _move(version, champion, found)
        said = (
            f"{here} is not the {CHAMPION}: {found.key} {found.new:.4f} is not above the "
            f"{found.old:.4f} of version {champion}"
        )
        return None

    with registry_errors(f"the {CHAMPION} of {version.name} was not decided"):
        store = client(version.registry)
        moved = move_champion(store, version.name, decide)
        is_champion = champion_of(store, version.name) == version.version
    if moved and moved.before:
        _refresh(_other(version, moved.before))
    return Decision(version.uri, is_champion=is_champion, text=said)


def promote(
    version: Version, *, force: bool = False, reason: str = "", measure: Measure | None = None
) -> Decision:
    """Make a version the champion.

    Args:
        version: which one.
        force: also where the number that decides falls, or nothing was measured on the same images.
        reason: why it is forced; kept in the log, as a tag and in the model card.
        measure: measures a version on images that are the same for all; without it the recorded
            numbers count.

    Raises:
        RegistryError: the number that decides falls, or cannot be compared, and it is not forced;
            or the registry does not answer.
    """
    here = f"{version.name} version {version.version}"
    if force and not reason.strip():
        raise RegistryError(
            f"{here} was not promoted: to force it say why, for those who come after: "
            '--force --reason "..."'
        )
    said = ""

    def decide(champion: str, _: Sequence[Move]) -> Move | None:
        nonlocal said
        if champion == version.version:
            said = f"{here} is the {CHAMPION} already"
            return None
        if not champion:
            said = f"{here} is the first {CHAMPION}"
            return Move(
                version=version.version, before="", how="promoted", text="the first", reason=reason
            )
        found = comparison_of(_other(version, champion), version, measure=measure)
        if not force:
            _refuse(version, champion, found)
        move = _move(version, champion, found, reason=reason)
        said = f"{here} is the {CHAMPION} now, {move.how}: {move.text}"
        return move

    with registry_errors(f"{here} was not promoted"):
        store = client(version.registry)
        moved = move_champion(store, version.name, decide)
        if moved:
            _after(store, version, moved, said)
    return Decision(version.uri, is_champion=True, text=said)


def rollback(name: str, *, registry: str, reason: str = "") -> Decision:
    """Return to the champion before; again goes one further back.

    Args:
        name: the registered model.
        registry: full tracking URI.
        reason: why; kept in the log and in the model cards.

    Raises:
        RegistryError: there was none before, or the registry does not answer.
        StorageError: there is no such registry.
    """

    def decide(champion: str, log: Sequence[Move]) -> Move:
        target = before_champion(log)
        if not target:
            raise RegistryError(
                f"{name} was not rolled back: no version was its {CHAMPION} before version "
                f"{champion}. See all: {_COMMAND} list {name}"
            )
        text = f"from version {champion or 'none'} back to version {target}"
        return Move(version=target, before=champion, how="rolled back", text=text, reason=reason)

    if not find_all(registry, name=name):
        raise RegistryError(f"no version is called {name}. See all: {_COMMAND} list")
    with registry_errors(f"{name} was not rolled back"):
        store = client(registry)
        moved = move_champion(store, name, decide)
        if moved is None:
            raise RegistryError(f"{name} was not rolled back")
        said = f"{name} version {moved.version} is the {CHAMPION} again: {moved.text}"
        version = find(name, registry=registry, version=moved.version)
        _after(store, version, moved, said)
    return Decision(version.uri, is_champion=True, text=said)


def content_of(version: Version) -> Content:
    """Read what a version carries beside its weights.

    Raises:
        RegistryError: it was not registered by this package, or its files cannot be read.
    """
    files = set(list_files(version, ""))
    if ORIGIN_FILE not in files:
        raise RegistryError(
            f"{version.uri} has no {ORIGIN_FILE}: it was not registered by this package, and "
            "nothing is known of it"
        )
    trained_on = read_file(version, TRAINED_ON_FILE) if TRAINED_ON_FILE in files else None
    with registry_errors(f"{version.uri}: its log cannot be read"):
        log = moves(client(version.registry), version.name)
    return Content(
        recipe=from_json(read_file(version, RECIPE_FILE).decode()),
        categories=categories_from_json(read_file(version, CATEGORIES_FILE).decode()),
        origin=Origin.from_json(read_file(version, ORIGIN_FILE)),
        trained_on=None if trained_on is None else TrainedOn.from_json(trained_on),
        evaluations=evaluations_of(version),
        moves=log,
    )


def refresh_card(version: Version) -> str:
    """Write the model card anew, from what is known now, and return it.

    Raises:
        RegistryError: see `content_of`.
    """
    content = content_of(version)
    text = card(version, content)
    add_file(version, CARD_FILE, text.encode())
    with registry_errors(f"{version.uri}: its description cannot be stored"):
        client(version.registry).update_model_version(
            version.name, version.version, description(version, content)
        )
    return text


def incomparable(before: Version, after: Version) -> str:
    """Say that two versions cannot be compared, and what to measure."""
    return (
        f"{after.uri} ({_measured_on(after)}) and {before.uri} ({_measured_on(before)}) have no "
        f"number of the same images. To measure both and compare them: {_COMMAND} compare "
        f"{after.name} --version {after.version} --against {before.version} --data "
        "SHARDS_OF_A_SPLIT"
    )


def _refuse(version: Version, champion: str, found: Comparison | None) -> None:
    command = f"{_COMMAND} promote {version.name} --version {version.version}"
    forced = f'{command} --force --reason "..."'
    here = f"{version.name} version {version.version} was not promoted"
    if found is None:
        raise RegistryError(
            f"{here}: {incomparable(_other(version, champion), version)}. Or promote it all the "
            f"same, and say why: {forced}"
        )
    if found.change < 0:
        raise RegistryError(
            f"{here}: {_numbers(found, champion)} falls by {-found.change:.4f}. To promote it all "
            f"the same, say why: {forced}"
        )


def _measured_on(version: Version) -> str:
    where = version.tags.get(EVALUATED_ON_TAG, "")
    return f"measured on {where}" if where else "measured on images that nobody noted"


def _move(version: Version, champion: str, found: Comparison | None, *, reason: str = "") -> Move:
    falls = found is None or found.change < 0
    return Move(
        version=version.version,
        before=champion,
        how="forced" if falls else "promoted",
        text=_numbers(found, champion) if found else "not measured on the same images",
        reason=reason,
    )


def _numbers(found: Comparison, champion: str) -> str:
    return f"{found.key} {found.old:.4f} (version {champion}) -> {found.new:.4f}"


def _after(store: "MlflowClient", version: Version, move: Move, said: str) -> None:
    """Write down at both versions what happened."""
    store.set_model_version_tag(version.name, version.version, "champion_decision", said)
    if move.how == "forced":
        store.set_model_version_tag(version.name, version.version, _REASON_TAG, move.reason)
    _refresh(version)
    if move.before:
        _refresh(_other(version, move.before))


def _refresh(version: Version) -> None:
    try:
        refresh_card(version)
    except RegistryError as error:
        # The alias has moved; a card that lags behind is no reason to say that it has not.
        _log.warning("%s; its model card was not written anew", error)


def _other(version: Version, number: str) -> Version:
    return find(version.name, registry=version.registry, version=number)
