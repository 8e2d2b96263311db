"""The champion alias is set, logged and rolled back, also with concurrent writers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow import MlflowClient

from pipeline.errors import RegistryError
from pipeline.registry import champions
from pipeline.registry.champions import (
    AliasChange,
    find_previous_champion,
    get_champion,
    read_alias_log,
    set_champion,
)
from pipeline.registry.lifecycle import rollback


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('champions')}/mlflow.db"


@pytest.fixture
def model(uri, request):
    """A model of eight versions without files."""
    store, name = MlflowClient(uri, uri), request.node.name
    store.create_registered_model(name)
    for _ in range(8):
        store.create_model_version(name, "file:///nowhere")
    return store, name


def promote_to(version):
    def decide(champion, _):
        return AliasChange(version=version, before=champion, how="promoted", text=f"to {version}")

    return decide


def roll_back(_, log):
    return AliasChange(
        version=find_previous_champion(log), before="", how="rolled back", text="back"
    )


def kill(*_):
    raise OSError


def test_each_rollback_undoes_one_promotion(model):
    store, name = model
    for version in "1", "2", "3":
        assert set_champion(store, name, promote_to(version)).version == version
        assert get_champion(store, name) == version
    for version in "2", "1":
        assert set_champion(store, name, roll_back).version == version
        assert get_champion(store, name) == version
    assert find_previous_champion(read_alias_log(store, name)) == ""
    set_champion(store, name, promote_to("3"))
    set_champion(store, name, promote_to("1"))
    assert set_champion(store, name, roll_back).version == "3"
    assert [change.version for change in read_alias_log(store, name)] == list("12321313")
    assert read_alias_log(store, name)[2].text == "to 3"


def test_an_alias_set_by_hand_is_logged_and_can_be_rolled_back_to(model, monkeypatch):
    monkeypatch.setattr(champions, "_TIMEOUT_S", 0.1)
    store, name = model
    set_champion(store, name, promote_to("1"))
    store.set_registered_model_alias(name, "champion", 5)
    set_champion(store, name, promote_to("2"))
    found = read_alias_log(store, name)[1]
    assert (found.how, found.version, found.before) == ("found", "5", "1")
    assert set_champion(store, name, roll_back).version == "5"
    store.delete_registered_model_alias(name, "champion")
    assert set_champion(store, name, roll_back).version == "5"


def test_an_aborted_change_does_not_block_the_next(model, monkeypatch):
    store, name = model
    set_champion(store, name, promote_to("1"))
    with monkeypatch.context() as patch:
        patch.setattr(store, "set_registered_model_alias", kill)
        patch.setattr(store, "delete_registered_model_tag", lambda *_: None)
        with pytest.raises(OSError):  # noqa: PT011  killed between the two writes
            set_champion(store, name, promote_to("2"))
    monkeypatch.setattr(champions, "_TIMEOUT_S", 0.1)
    assert set_champion(store, name, promote_to("3")).before == "1"
    assert get_champion(store, name) == "3"
    assert set_champion(store, name, roll_back).version == "1"


def test_a_missing_version_is_an_error_and_changes_nothing(model):
    store, name = model
    set_champion(store, name, promote_to("1"))
    with pytest.raises(Exception, match="99"):
        set_champion(store, name, promote_to("99"))
    assert [change.version for change in read_alias_log(store, name)] == ["1"]


def test_concurrent_changes_are_all_logged(model, uri):
    """Each change is decided against the champion before it."""
    _, name = model
    barrier = threading.Barrier(6)

    def promote(version):
        store = MlflowClient(uri, uri)
        barrier.wait()
        return set_champion(store, name, promote_to(version))

    with ThreadPoolExecutor(6) as pool:
        changes = list(pool.map(promote, "234567"))
    store = MlflowClient(uri, uri)
    log = read_alias_log(store, name)
    assert sorted(change.version for change in log) == list("234567")
    assert get_champion(store, name) == log[-1].version
    befores = [""] + [change.version for change in log[:-1]]
    assert [change.before for change in log] == befores
    assert {(change.version, change.before) for change in changes} == {
        (change.version, change.before) for change in log
    }


def test_a_decision_is_repeated_if_the_champion_changed_meanwhile(model):
    store, name = model
    set_champion(store, name, promote_to("1"))
    seen = []

    def slow(champion, _):
        seen.append(champion)
        if len(seen) == 1:
            set_champion(store, name, promote_to("2"))
        return AliasChange(version="3", before=champion, how="promoted", text="")

    assert set_champion(store, name, slow).before == "2"
    assert seen == ["1", "2"]


def test_the_first_champion_cannot_be_rolled_back(model, uri):
    store, name = model
    set_champion(store, name, promote_to("4"))
    with pytest.raises(RegistryError, match=r"no version was its champion before version 4"):
        rollback(name, registry=uri)
    assert get_champion(store, name) == "4"
