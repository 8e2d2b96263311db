"""Promote, roll back and document registered versions.

Registration makes a version the champion if it is better (`promote_if_better`); a user does so with
`promote`, which refuses a version whose deciding metric falls unless it is forced with a reason.
Versions are compared only on the same images.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import RegistryError
from pipeline.recipe import from_json
from pipeline.registry.champions import (
    AliasChange,
    find_previous_champion,
    get_champion,
    read_alias_log,
    set_champion,
)
from pipeline.registry.comparison import Comparison, choose_metric, compare, finds_nothing
from pipeline.registry.model_card import CardContent, format_card, format_description
from pipeline.registry.provenance import EvaluationRecord, Origin, TrainingData, to_json
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
    find_version,
    list_files,
    list_versions,
    read_file,
    wrap_registry_errors,
)
from pipeline.serving.artifacts import categories_from_json
from pipeline.tracking.stores import create_client, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

_REASON_TAG = "forced_because"
_COMMAND = "python jobs/models.py"

VersionEvaluator = Callable[[Version], EvaluationRecord]
"""Evaluates any version on the same images."""


class Decision(NamedTuple):
    """The outcome of a promotion or rollback."""

    uri: str
    """The version, models:/NAME/VERSION."""
    is_champion: bool
    text: str


def read_evaluations(version: Version) -> list[EvaluationRecord]:
    """Read the evaluations of a version, the one at registration first.

    Raises:
        RegistryError: the artifact store does not answer.
    """
    records = [
        EvaluationRecord.from_json(read_file(version, file))
        for file in list_files(version, EVALUATIONS_FOLDER)
    ]
    registered = version.tags.get(EVALUATED_ON_TAG, "")
    return sorted(records, key=lambda each: each.evaluated_on != registered)


def save_evaluation(version: Version, record: EvaluationRecord) -> None:
    """Save an evaluation with a version, replacing an earlier one on the same images.

    Raises:
        RegistryError: the artifact store does not accept it.
    """
    name = hashlib.sha256(record.evaluated_on.encode()).hexdigest()[:12]
    add_file(version, f"{EVALUATIONS_FOLDER}/{name}.json", to_json(record).encode())


def compare_versions(
    before: Version, after: Version, *, evaluate: VersionEvaluator | None = None
) -> Comparison | None:
    """Compare two versions on the same images; None if there are none.

    Args:
        before: the current version.
        after: the version that may replace it.
        evaluate: evaluates both versions; by default the recorded evaluations are compared.

    Raises:
        RegistryError: the artifact store does not answer.
    """
    if evaluate is not None:
        return compare(evaluate(before), evaluate(after))
    old_records = read_evaluations(before)
    pairs = (compare(old, new) for new in read_evaluations(after) for old in old_records)
    return next((each for each in pairs if each is not None), None)


def promote_if_better(version: Version) -> Decision:
    """Make a version the champion if it is better than the current one.

    Raises:
        RegistryError: the registry does not answer.
    """
    here = _label(version)

    def judge(champion: str) -> tuple[AliasChange | None, str]:
        if not champion:
            record = read_evaluations(version)[0]
            key = choose_metric(record, record)
            if not key:
                return None, f"{here} is not the {CHAMPION}: no deciding metric was measured"
            if finds_nothing(record.metrics):
                return None, f"{here} is not the {CHAMPION}: it finds nothing ({key} is 0)"
            numbers = f"{key} {record.metrics[key]:.4f}"
            first = AliasChange(version=version.version, before="", how="promoted", text=numbers)
            return first, f"{here} is the first {CHAMPION}: {numbers}"
        current = _sibling(version, champion)
        comparison = compare_versions(current, version)
        if comparison is None:
            return None, f"{here} is not the {CHAMPION}: {format_incomparable(current, version)}"
        if comparison.change > 0:
            numbers = _format_numbers(comparison, champion)
            return (
                _to_change(version, champion, comparison),
                f"{here} is the new {CHAMPION}: {numbers}",
            )
        return None, (
            f"{here} is not the {CHAMPION}: {comparison.key} {comparison.new:.4f} is not above the "
            f"{comparison.old:.4f} of version {champion}"
        )

    with wrap_registry_errors(f"the {CHAMPION} of {version.name} was not decided"):
        store = create_client(version.registry)
        change, text = _set_champion(store, version, judge)
        is_champion = get_champion(store, version.name) == version.version
    if change and change.before:
        _try_update_card(_sibling(version, change.before))
    return Decision(version.uri, is_champion=is_champion, text=text)


def promote(
    version: Version,
    *,
    force: bool = False,
    reason: str = "",
    evaluate: VersionEvaluator | None = None,
) -> Decision:
    """Make a version the champion.

    Args:
        version: the version.
        force: promote it even if the deciding metric falls or cannot be compared.
        reason: why it is forced; kept in the log, as a tag and in the model card.
        evaluate: see `compare_versions`.

    Raises:
        RegistryError: it finds nothing, or the deciding metric falls or cannot be compared, and it
            is not forced; it is forced without a reason; or the registry does not answer.
    """
    here = _label(version)
    if force and not reason.strip():
        raise RegistryError(
            f"{here} was not promoted: a forced promotion needs a reason, for later readers: "
            '--force --reason "..."'
        )

    def judge(champion: str) -> tuple[AliasChange, str]:
        if not champion:
            if not force:
                _refuse_if_useless(version)
            first = AliasChange(
                version=version.version, before="", how="promoted", text="the first", reason=reason
            )
            return first, f"{here} is the first {CHAMPION}"
        comparison = compare_versions(_sibling(version, champion), version, evaluate=evaluate)
        if not force:
            _refuse_if_worse(version, champion, comparison)
        change = _to_change(version, champion, comparison, reason=reason)
        return change, f"{here} is now the {CHAMPION}, {change.how}: {change.text}"

    with wrap_registry_errors(f"{here} was not promoted"):
        store = create_client(version.registry)
        change, text = _set_champion(store, version, judge)
        if change:
            _record_change(store, version, change, text)
    return Decision(version.uri, is_champion=True, text=text)


def rollback(name: str, *, registry: str, reason: str = "") -> Decision:
    """Return to the previous champion; each further call goes back one more.

    Args:
        name: the registered model.
        registry: full tracking URI.
        reason: kept in the log and in the model cards.

    Raises:
        RegistryError: there is no previous champion, or the registry does not answer.
        StorageError: there is no such registry.
    """

    def decide(champion: str, log: Sequence[AliasChange]) -> AliasChange:
        target = find_previous_champion(log)
        if not target:
            raise RegistryError(
                f"{name} was not rolled back: no version was its {CHAMPION} before version "
                f"{champion}. To list all versions: {_COMMAND} list {name}"
            )
        text = f"from version {champion or 'none'} to version {target}"
        return AliasChange(
            version=target, before=champion, how="rolled back", text=text, reason=reason
        )

    if not list_versions(registry, name=name):
        raise RegistryError(f"there is no model {name}. To list all models: {_COMMAND} list")
    with wrap_registry_errors(f"{name} was not rolled back"):
        store = create_client(registry)
        change = set_champion(store, name, decide)
        if change is None:
            raise RegistryError(f"{name} was not rolled back")
        text = f"{name} version {change.version} is the {CHAMPION} again: rolled back {change.text}"
        version = find_version(name, registry=registry, version=change.version)
        _record_change(store, version, change, text)
    return Decision(version.uri, is_champion=True, text=text)


def read_card_content(version: Version) -> CardContent:
    """Read everything that the model card of a version needs.

    Raises:
        RegistryError: it was not registered by this package, or its files cannot be read.
    """
    files = set(list_files(version, ""))
    if ORIGIN_FILE not in files:
        raise RegistryError(
            f"{version.uri} has no {ORIGIN_FILE} in {redact(version.source)} (it holds: "
            f"{', '.join(sorted(files)) or 'nothing'}): it was registered by other code, or its "
            "files were moved or removed. Choose another version: "
            f"python jobs/models.py list {version.name}"
        )
    training_data = read_file(version, TRAINED_ON_FILE) if TRAINED_ON_FILE in files else None
    with wrap_registry_errors(f"{version.uri}: its log cannot be read"):
        log = read_alias_log(create_client(version.registry), version.name)
    return CardContent(
        recipe=from_json(read_file(version, RECIPE_FILE).decode()),
        categories=categories_from_json(read_file(version, CATEGORIES_FILE).decode()),
        origin=Origin.from_json(read_file(version, ORIGIN_FILE)),
        training_data=None if training_data is None else TrainingData.from_json(training_data),
        evaluations=read_evaluations(version),
        alias_log=log,
    )


def update_card(version: Version) -> None:
    """Rewrite the model card and the description of a version.

    Raises:
        RegistryError: see `read_card_content`.
    """
    content = read_card_content(version)
    add_file(version, CARD_FILE, format_card(version, content).encode())
    with wrap_registry_errors(f"{version.uri}: its description cannot be stored"):
        create_client(version.registry).update_model_version(
            version.name, version.version, format_description(version, content)
        )


def format_incomparable(before: Version, after: Version) -> str:
    """Explain that two versions cannot be compared, with the command that evaluates both."""
    return (
        f"{after.uri} ({_evaluated_on(after)}) and {before.uri} ({_evaluated_on(before)}) have no "
        f"metric on the same images. To evaluate both and compare them: {_COMMAND} compare "
        f"{after.name} --version {after.version} --against {before.version} --data "
        "SHARDS_OF_A_SPLIT"
    )


def _set_champion(
    store: "MlflowClient",
    version: Version,
    judge: Callable[[str], tuple[AliasChange | None, str]],
) -> tuple[AliasChange | None, str]:
    """Let `judge` decide between the champion and a version, and explain its decision."""
    text = ""

    def decide(champion: str, _: Sequence[AliasChange]) -> AliasChange | None:
        nonlocal text
        if champion == version.version:
            text = f"{_label(version)} is already the {CHAMPION}"
            return None
        change, text = judge(champion)
        return change

    return set_champion(store, version.name, decide), text


def _refuse_if_useless(version: Version) -> None:
    if any(finds_nothing(each.metrics) for each in read_evaluations(version)[:1]):
        raise RegistryError(
            f"{_label(version)} was not promoted: it finds nothing. {_how_to_force(version)}"
        )


def _how_to_force(version: Version) -> str:
    command = f"{_COMMAND} promote {version.name} --version {version.version}"
    return f'To promote it anyway, give a reason: {command} --force --reason "..."'


def _refuse_if_worse(version: Version, champion: str, comparison: Comparison | None) -> None:
    to_force = _how_to_force(version)
    here = f"{_label(version)} was not promoted"
    if comparison is None:
        explanation = format_incomparable(_sibling(version, champion), version)
        raise RegistryError(f"{here}: {explanation}. {to_force}")
    if comparison.change < 0:
        raise RegistryError(
            f"{here}: {_format_numbers(comparison, champion)} falls by {-comparison.change:.4f}. "
            f"{to_force}"
        )


def _evaluated_on(version: Version) -> str:
    return f"measured on {version.tags.get(EVALUATED_ON_TAG) or 'unknown images'}"


def _to_change(
    version: Version, champion: str, comparison: Comparison | None, *, reason: str = ""
) -> AliasChange:
    is_worse = comparison is None or comparison.change < 0
    return AliasChange(
        version=version.version,
        before=champion,
        how="forced" if is_worse else "promoted",
        text=(
            _format_numbers(comparison, champion)
            if comparison
            else "not measured on the same images"
        ),
        reason=reason,
    )


def _format_numbers(comparison: Comparison, champion: str) -> str:
    return f"{comparison.key} {comparison.old:.4f} (version {champion}) -> {comparison.new:.4f}"


def _record_change(store: "MlflowClient", version: Version, change: AliasChange, text: str) -> None:
    """Record a change in the tags and cards of both versions."""
    store.set_model_version_tag(version.name, version.version, "champion_decision", text)
    if change.how == "forced":
        store.set_model_version_tag(version.name, version.version, _REASON_TAG, change.reason)
    _try_update_card(version)
    if change.before:
        _try_update_card(_sibling(version, change.before))


def _try_update_card(version: Version) -> None:
    try:
        update_card(version)
    except RegistryError as error:
        # The alias has changed already; an outdated card must not report that as a failure.
        _log.warning("%s; its model card was not updated", error)


def _label(version: Version) -> str:
    return f"{version.name} version {version.version}"


def _sibling(version: Version, number: str) -> Version:
    return find_version(version.name, registry=version.registry, version=number)
