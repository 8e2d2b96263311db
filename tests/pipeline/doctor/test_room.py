"""Workers are placed as Ray places them, and what they leave to Ray Data is counted."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.coco_r101 import RECIPE
from pipeline.doctor.capacity import room
from pipeline.doctor.demand import demand_of, recipe_of, scale_of
from pipeline.doctor.facts import Demand, Node
from pipeline.errors import RecipeError

ROOT = Path(__file__).parents[3]


def node(name, cpus, gpus=0):
    return Node(node_id=name, name=name, cpus=cpus, gpus=gpus, object_store_bytes=0)


def asking(num_workers, cpus_per_worker=1.0, *, use_gpu=False):
    return Demand(
        num_workers=num_workers,
        cpus_per_worker=cpus_per_worker,
        use_gpu=use_gpu,
        source="flags",
    )


@pytest.mark.parametrize(
    ("nodes", "demand", "level", "says"),
    [
        ([node("a", 16, 4), node("b", 16, 4)], asking(8, use_gpu=True), "ok", "beside them: 12"),
        ([node("head", 0), node("a", 4)], asking(3), "ok", "left beside them: 1"),
        ([node("a", 4), node("b", 4)], asking(8), "FAIL", "take 8 of the 8 CPUs"),
        ([node("a", 4), node("b", 4)], asking(9), "FAIL", "there is room for 8"),
        ([node("a", 4, 1)], asking(2, use_gpu=True), "FAIL", "there is room for 1"),
        ([node("head", 0)], asking(8, use_gpu=True), "FAIL", "there is room for 0"),
        # Ray fills the first node before it takes the second one.
        ([node("a", 4), node("b", 4)], asking(4), "warning", "no CPU to Ray Data on a"),
        ([node("a", 4, 4), node("b", 4, 4)], asking(8, use_gpu=True), "FAIL", "wait for ever"),
        ([node("a", 2)], asking(3, 0.3), "ok", "left beside them: 1.1"),
        ([node("a", 2)], asking(0), "ok", ""),
    ],
)  # fmt: skip
def test_room_for_workers_and_for_data(nodes, demand, level, says):
    finding = room(nodes, demand)
    assert (finding.level, says in finding.text) == (level, True), finding
    assert bool(finding.fix) == (level != "ok")


@pytest.mark.parametrize("cpus", [2, 4, 16])
@pytest.mark.parametrize("num_workers", [2, 5, 8])
def test_what_the_fix_says_is_a_fix(cpus, num_workers):
    nodes = [node("a", cpus), node("b", cpus)]
    demand = asking(num_workers, cpus / 2)
    finding = room(nodes, demand)
    fewer = re.search(r"num-workers (\d+)", finding.fix)
    smaller = re.search(r"cpus-per-worker ([\d.]+)", finding.fix)
    if finding.level != "ok":
        assert fewer or smaller
    if fewer:
        assert room(nodes, replace(demand, num_workers=int(fewer[1]))).level == "ok"
    if smaller:
        assert room(nodes, replace(demand, cpus_per_worker=float(smaller[1]))).level == "ok"


def test_a_job_says_what_it_needs_and_flags_say_it_better():
    recipe = recipe_of(ROOT / "jobs" / "coco_r101.py")
    assert recipe == RECIPE
    flags = {"num_workers": None, "cpus_per_worker": None, "use_gpu": False}
    assert scale_of(None, **flags) is None
    assert scale_of(recipe, **flags) == RECIPE.scale
    scale = scale_of(recipe, **(flags | {"num_workers": 4, "cpus_per_worker": 2.0}))
    demand = demand_of(scale, [], source="jobs/coco_r101.py")
    assert (demand.num_workers, demand.cpus_per_worker, demand.use_gpu) == (4, 2.0, True)


def test_with_no_job_there_is_a_worker_for_each_gpu_or_else_for_each_node():
    gpus = demand_of(None, [node("head", 0), node("a", 8, 4), node("b", 8, 4)], source="")
    assert (gpus.num_workers, gpus.use_gpu) == (8, True)
    cpus = demand_of(None, [node("head", 0), node("a", 8), node("b", 8)], source="")
    assert (cpus.num_workers, cpus.use_gpu) == (2, False)


@pytest.mark.parametrize("job", ["jobs/nothing.py", "jobs/audit.py"])
def test_what_is_no_training_job_is_refused(job):
    with pytest.raises(RecipeError, match=job):
        recipe_of(ROOT / job if "audit" in job else Path(job))
