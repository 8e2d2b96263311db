"""The champion moves, is logged and comes back, also when several want to move it at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow import MlflowClient

from pipeline.errors import RegistryError
from pipeline.registry import champions
from pipeline.registry.champions import Move, before_champion, champion_of, move_champion, moves
from pipeline.registry.lifecycle import rollback


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('champions')}/mlflow.db"


@pytest.fixture
def model(uri, request):
    """A model of eight versions, which hold nothing."""
    store, name = MlflowClient(uri, uri), request.node.name
    store.create_registered_model(name)
    for _ in range(8):
        store.create_model_version(name, "file:///nowhere")
    return store, name


def to(version):
    def decide(champion, _):
        return Move(version=version, before=champion, how="promoted", text=f"to {version}")

    return decide


def back(_, log):
    return Move(version=before_champion(log), before="", how="rolled back", text="back")


def killed(*_):
    raise OSError


def test_rollback_goes_back_one_promotion_at_a_time(model):
    store, name = model
    for version in "1", "2", "3":
        assert move_champion(store, name, to(version)).version == version
        assert champion_of(store, name) == version
    for version in "2", "1":
        assert move_champion(store, name, back).version == version
        assert champion_of(store, name) == version
    assert before_champion(moves(store, name)) == ""
    move_champion(store, name, to("3"))
    move_champion(store, name, to("1"))
    assert move_champion(store, name, back).version == "3"
    assert [move.version for move in moves(store, name)] == list("12321313")
    assert moves(store, name)[2].text == "to 3"


def test_an_alias_moved_by_hand_is_found_and_returned_to(model, monkeypatch):
    monkeypatch.setattr(champions, "_PATIENCE_S", 0.1)
    store, name = model
    move_champion(store, name, to("1"))
    store.set_registered_model_alias(name, "champion", 5)
    move_champion(store, name, to("2"))
    found = moves(store, name)[1]
    assert (found.how, found.version, found.before) == ("found", "5", "1")
    assert move_champion(store, name, back).version == "5"
    store.delete_registered_model_alias(name, "champion")
    assert move_champion(store, name, back).version == "5"


def test_a_move_that_was_cut_off_does_not_stop_the_next(model, monkeypatch):
    store, name = model
    move_champion(store, name, to("1"))
    with monkeypatch.context() as patch:
        patch.setattr(store, "set_registered_model_alias", killed)
        patch.setattr(store, "delete_registered_model_tag", lambda *_: None)
        with pytest.raises(OSError):  # noqa: PT011  killed between its two writes
            move_champion(store, name, to("2"))
    monkeypatch.setattr(champions, "_PATIENCE_S", 0.1)
    assert move_champion(store, name, to("3")).before == "1"
    assert champion_of(store, name) == "3"
    assert move_champion(store, name, back).version == "1"


def test_a_version_that_is_gone_is_an_error_and_changes_nothing(model):
    store, name = model
    move_champion(store, name, to("1"))
    with pytest.raises(Exception, match="99"):
        move_champion(store, name, to("99"))
    assert [move.version for move in moves(store, name)] == ["1"]


def test_of_many_at_once_none_is_lost(model, uri):
    """Each decides against the champion before it, and the log tells of all of them."""
    _, name = model
    together = threading.Barrier(6)

    def promote(version):
        store = MlflowClient(uri, uri)
        together.wait()
        return move_champion(store, name, to(version))

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(promote, "234567"))
    store = MlflowClient(uri, uri)
    log = moves(store, name)
    assert sorted(move.version for move in log) == list("234567")
    assert champion_of(store, name) == log[-1].version
    befores = [""] + [move.version for move in log[:-1]]
    assert [move.before for move in log] == befores
    assert {(move.version, move.before) for move in made} == {(m.version, m.before) for m in log}


def test_a_decision_is_made_again_when_the_champion_changed_meanwhile(model):
    store, name = model
    move_champion(store, name, to("1"))
    seen = []

    def slow(champion, _):
        seen.append(champion)
        if len(seen) == 1:
            move_champion(store, name, to("2"))
        return Move(version="3", before=champion, how="promoted", text="")

    assert move_champion(store, name, slow).before == "2"
    assert seen == ["1", "2"]


def test_the_first_champion_cannot_be_rolled_back(model, uri):
    store, name = model
    move_champion(store, name, to("4"))
    with pytest.raises(RegistryError, match=r"no version was its champion before version 4"):
        rollback(name, registry=uri)
    assert champion_of(store, name) == "4"
