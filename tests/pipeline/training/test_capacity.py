"""A run that Ray has no capacity for is refused on one machine, and waits on a cluster."""

import logging
from dataclasses import replace

import pytest

from pipeline.errors import RecipeError
from pipeline.training import capacity, node_watch
from pipeline.training.capacity import check_cluster, count_cpus, describe_shortage, start_ray


def make_node(cpus: float, *, name: str = "a", alive: bool = True) -> dict:
    return {
        "NodeID": name,
        "NodeManagerHostname": f"host-{name}",
        "NodeManagerAddress": "192.0.2.1",
        "Alive": alive,
        "Resources": {"CPU": cpus},
    }


@pytest.fixture
def start(recipe, monkeypatch):
    """Start Ray with given nodes, for a run of two workers with 2 CPUs each."""
    scaled = replace(recipe, scale=replace(recipe.scale, num_workers=2, cpus_per_worker=2.0))

    def start_with(*nodes: dict) -> None:
        cpus = sum(node["Resources"]["CPU"] for node in nodes)
        monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: {"CPU": cpus})
        monkeypatch.setattr(capacity.ray, "nodes", lambda: list(nodes))
        monkeypatch.setattr(capacity, "connect", lambda *, cpus: None)
        start_ray(scaled)

    return start_with


def test_enough_cpus_are_accepted(start):
    start(make_node(5))


def test_a_single_machine_that_is_too_small_is_a_recipe_error(start):
    with pytest.raises(RecipeError) as error:
        start(make_node(4))
    assert "Ray has 4 CPUs, the run needs 5 (2 workers, and 1 CPU for Ray Data)" in str(error.value)
    assert "--scale.num-workers" in str(error.value)


@pytest.mark.parametrize("nodes", [(make_node(0),), (make_node(2), make_node(2, name="b"))])
def test_a_cluster_waits_for_more_nodes(start, nodes, caplog):
    with caplog.at_level(logging.INFO, logger="pipeline"):
        start(*nodes)
    assert "The run waits until enough nodes have joined." in caplog.text


def test_a_cluster_is_checked_before_the_data_and_a_local_ray_after_it(start, recipe, monkeypatch):
    start(make_node(100))
    monkeypatch.setattr(capacity, "connect", lambda: None)
    monkeypatch.setattr(capacity, "check_environment", lambda: None)
    many = replace(recipe, scale=replace(recipe.scale, num_workers=2, cpus_per_worker=200.0))
    monkeypatch.setattr(capacity, "uses_cluster", lambda: False)
    check_cluster(many)
    monkeypatch.setattr(capacity, "uses_cluster", lambda: True)
    with pytest.raises(RecipeError, match="Ray has 100 CPUs, the run needs 401"):
        check_cluster(many)


def test_gpus_are_counted_too(recipe, monkeypatch):
    scale = replace(recipe.scale, num_workers=1, use_gpu=True)
    monkeypatch.setattr(capacity.ray, "cluster_resources", lambda: {"CPU": 8.0})
    assert count_cpus(scale) == scale.cpus_per_worker + 1
    assert describe_shortage(scale) == (
        "Ray has 0 GPUs, the run needs 1 (1 worker, and 1 CPU for Ray Data)"
    )


def test_nodes_that_leave_and_join_are_logged(recipe, monkeypatch, caplog):
    one, two = make_node(3, name="a"), make_node(3, name="b")
    lost = make_node(3, name="b", alive=False)
    idle = lost | {"DeathReason": 4}
    scale = replace(recipe.scale, num_workers=2, cpus_per_worker=2.0)
    views = iter([[one, two], [one, lost], [one, two], [one, idle]])
    shortages = iter(["Ray has 3 CPUs", "", ""])

    class StopAfterThree:
        polls = 0

        def wait(self, _seconds: float) -> bool:
            self.polls += 1
            return self.polls > 3

    monkeypatch.setattr(node_watch.ray, "nodes", lambda: next(views))
    monkeypatch.setattr(node_watch, "describe_shortage", lambda _: next(shortages))
    with caplog.at_level(logging.INFO, logger="pipeline"):
        node_watch._poll_nodes(scale, StopAfterThree())
    assert caplog.messages == [
        "node host-b (192.0.2.1) was lost with everything that ran on it; 1 node left",
        "Ray has 3 CPUs. The run waits until enough nodes have joined, and then resumes from the "
        "last checkpoint.",
        "node host-b (192.0.2.1) joined; 2 nodes now",
        "the cluster has capacity for all workers again",
        "node host-b (192.0.2.1) left the cluster; 1 node left",
    ]
