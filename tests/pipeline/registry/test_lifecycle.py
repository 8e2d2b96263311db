"""Versions are promoted only for better metrics on the same images, or by force with a reason."""

import pytest
from mlflow import MlflowClient

from pipeline.errors import RegistryError
from pipeline.registry.champions import read_alias_log
from pipeline.registry.comparison import finds_nothing
from pipeline.registry.lifecycle import (
    promote,
    promote_if_better,
    read_evaluations,
    rollback,
    save_evaluation,
)
from pipeline.registry.provenance import EvaluationRecord
from pipeline.registry.versions import EVALUATED_ON_TAG, find_version


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lifecycle")
    store = MlflowClient(f"sqlite:///{folder}/mlflow.db", f"sqlite:///{folder}/mlflow.db")
    store.create_experiment("lifecycle", (folder / "artifacts").as_uri())
    return store


@pytest.fixture
def add_version(store, request):
    """Register versions that consist of one evaluation each."""
    name = request.node.name
    experiment = store.get_experiment_by_name("lifecycle").experiment_id
    run = store.create_run(experiment).info
    store.create_registered_model(name)

    def add(boundary_ap, *, on="val, 60 images"):
        source = f"{run.artifact_uri}/models/{boundary_ap}-{on[:3]}"
        tags = {EVALUATED_ON_TAG: on}
        number = store.create_model_version(name, source, run.run_id, tags=tags).version
        version = find_version(name, registry=store.tracking_uri, version=str(number))
        save_evaluation(version, make_record(boundary_ap, on=on))
        return version

    return add


def make_record(boundary_ap, *, on="val, 60 images"):
    return EvaluationRecord(evaluated_on=on, metrics={"boundary_ap": boundary_ap})


def champion(store, version):
    return str(store.get_model_version_by_alias(version.name, "champion").version)


def test_a_model_that_finds_nothing_is_nobodys_champion(add_version, store):
    useless, poor = add_version(0.0), add_version(0.001)
    decision = promote_if_better(useless)
    assert not decision.is_champion
    assert decision.text.endswith("is not the champion: it finds nothing (boundary_ap is 0)")
    with pytest.raises(RegistryError, match=r"it finds nothing\. .* --force --reason"):
        promote(useless)
    assert promote_if_better(poor).is_champion
    # Coarse masks are something.
    assert not finds_nothing({"boundary_ap": 0.0, "mask_ap": 0.1})


def test_only_a_better_version_on_the_same_images_is_promoted_by_itself(add_version, store):
    unmeasured, first = add_version(float("nan")), add_version(0.3)
    assert promote_if_better(unmeasured) == (
        unmeasured.uri,
        False,
        f"{first.name} version 1 is not the champion: no deciding metric was measured",
    )
    assert promote_if_better(first).is_champion
    assert promote_if_better(first).text.endswith("version 2 is already the champion")
    equal, elsewhere, better = add_version(0.3), add_version(0.9, on="test"), add_version(0.31)
    assert not promote_if_better(equal).is_champion
    assert "have no metric on the same images" in promote_if_better(elsewhere).text
    assert champion(store, first) == "2"
    assert promote_if_better(better).text.endswith("boundary_ap 0.3000 (version 2) -> 0.3100")
    assert champion(store, first) == "5"


def test_promote_refuses_a_version_that_is_worse_or_cannot_be_compared(add_version, store):
    best, worse, elsewhere = add_version(0.3), add_version(0.2), add_version(0.9, on="test")
    assert promote(best).text.endswith("version 1 is the first champion")
    for version, problem in ((worse, "falls by 0.1000"), (elsewhere, "no metric on the same")):
        with pytest.raises(RegistryError, match=problem) as raised:
            promote(version)
        assert f"--version {version.version} --force --reason" in str(raised.value)
    assert champion(store, best) == "1"
    assert len(read_alias_log(store, best.name)) == 1


def test_a_forced_promotion_needs_a_reason_and_keeps_it(add_version, store):
    best, worse = add_version(0.3), add_version(0.2)
    promote(best)
    with pytest.raises(RegistryError, match="needs a reason"):
        promote(worse, force=True, reason=" ")
    assert champion(store, best) == "1"
    decision = promote(worse, force=True, reason="version 1 is too slow")
    assert "is now the champion, forced: boundary_ap 0.3000 (version 1) -> 0.2000" in decision.text
    tags = store.get_model_version(worse.name, worse.version).tags
    assert tags["forced_because"] == "version 1 is too slow"
    assert tags["champion_decision"] == decision.text
    change = read_alias_log(store, best.name)[-1]
    assert (change.how, change.reason) == ("forced", "version 1 is too slow")
    # Nothing falls on the way back, so force is not noted.
    assert "promoted" in promote(best, force=True, reason="back").text


def test_an_evaluator_decides_instead_of_the_recorded_metrics(add_version, store):
    best, worse = add_version(0.3), add_version(0.2)
    promote(best)
    ratings = {best.uri: 0.1, worse.uri: 0.4}
    promote(worse, evaluate=lambda version: make_record(ratings[version.uri], on="test"))
    assert champion(store, best) == worse.version


def test_a_rollback_returns_to_the_former_champion(add_version, store):
    first, second = add_version(0.3), add_version(0.4)
    promote(first)
    promote(second)
    decision = rollback(first.name, registry=first.registry, reason="a mistake")
    assert decision == (
        first.uri,
        True,
        f"{first.name} version 1 is the champion again: rolled back from version 2 to version 1",
    )
    assert champion(store, first) == "1"
    assert read_alias_log(store, first.name)[-1].reason == "a mistake"
    with pytest.raises(RegistryError, match="no version was its champion before version 1"):
        rollback(first.name, registry=first.registry)
    with pytest.raises(RegistryError, match="there is no model nobody"):
        rollback("nobody", registry=first.registry)


def test_a_failed_card_does_not_fail_the_promotion(add_version, store, caplog):
    version = add_version(0.3)
    assert promote(version).is_champion
    assert champion(store, version) == "1"
    assert "origin.json" in caplog.text
    assert "its model card was not updated" in caplog.text


def test_evaluations_on_the_same_images_are_replaced_and_the_first_stays_first(add_version):
    version = add_version(0.3)
    for boundary_ap in (0.5, 0.6):
        save_evaluation(version, make_record(boundary_ap, on="a test split"))
    records = [(r.evaluated_on, r.metrics["boundary_ap"]) for r in read_evaluations(version)]
    assert records == [("val, 60 images", 0.3), ("a test split", 0.6)]
