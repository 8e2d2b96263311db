import re
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.coco_r101 import RECIPE
from pipeline.doctor.capacity import check_capacity
from pipeline.doctor.demand import apply_flags, load_recipe, make_demand
from pipeline.doctor.facts import Demand, Node
from pipeline.errors import RecipeError

ROOT = Path(__file__).parents[3]


def node(name, cpus, gpus=0):
    return Node(node_id=name, name=name, cpus=cpus, gpus=gpus, object_store_bytes=0)


def request(num_workers, cpus_per_worker=1.0, *, use_gpu=False):
    return Demand(
        num_workers=num_workers,
        cpus_per_worker=cpus_per_worker,
        use_gpu=use_gpu,
        source="flags",
    )


@pytest.mark.parametrize(
    ("nodes", "demand", "level", "says"),
    [
        ([node("a", 16, 4), node("b", 16, 4)], request(8, use_gpu=True), "ok", "nodes: 12 or more"),
        ([node("head", 0), node("a", 4)], request(3), "ok", "nodes: 1 or more"),
        ([node("a", 4), node("b", 4)], request(8), "FAIL", "take 8 of the 8 CPUs"),
        ([node("a", 4), node("b", 4)], request(9), "FAIL", "only 8 fit"),
        ([node("a", 4, 1)], request(2, use_gpu=True), "FAIL", "only 1 fit"),
        ([node("head", 0)], request(8, use_gpu=True), "FAIL", "only 0 fit"),
        # Ray fills the first node before it uses the second one.
        ([node("a", 4), node("b", 4)], request(4), "warning", "no CPU for Ray Data on a"),
        ([node("a", 4, 4), node("b", 4, 4)], request(8, use_gpu=True), "FAIL", "wait forever"),
        ([node("a", 2)], request(3, 0.3), "ok", "nodes: 1.1 or more"),
        ([node("a", 2)], request(0), "ok", ""),
    ],
)  # fmt: skip
def test_capacity_for_workers_and_for_ray_data(nodes, demand, level, says):
    finding = check_capacity(nodes, demand)
    assert (finding.level, says in finding.text) == (level, True), finding
    assert bool(finding.fix) == (level != "ok")


@pytest.mark.parametrize("cpus", [2, 4, 16])
@pytest.mark.parametrize("num_workers", [2, 5, 8])
def test_the_suggested_fix_passes(cpus, num_workers):
    nodes = [node("a", cpus), node("b", cpus)]
    demand = request(num_workers, cpus / 2)
    finding = check_capacity(nodes, demand)
    fewer = re.search(r"num-workers (\d+)", finding.fix)
    smaller = re.search(r"cpus-per-worker ([\d.]+)", finding.fix)
    if finding.level != "ok":
        assert fewer or smaller
    if fewer:
        assert check_capacity(nodes, replace(demand, num_workers=int(fewer[1]))).level == "ok"
    if smaller:
        assert (
            check_capacity(nodes, replace(demand, cpus_per_worker=float(smaller[1]))).level == "ok"
        )


def test_flags_override_the_scale_of_a_job():
    recipe = load_recipe(ROOT / "jobs" / "coco_r101.py")
    assert recipe == RECIPE
    flags = {"num_workers": None, "cpus_per_worker": None, "use_gpu": False}
    assert apply_flags(None, **flags) is None
    assert apply_flags(recipe, **flags) == RECIPE.scale
    scale = apply_flags(recipe, **(flags | {"num_workers": 4, "cpus_per_worker": 2.0}))
    demand = make_demand(scale, [], source="jobs/coco_r101.py")
    assert (demand.num_workers, demand.cpus_per_worker, demand.use_gpu) == (4, 2.0, True)


def test_without_a_job_there_is_a_worker_for_each_gpu_or_node():
    gpus = make_demand(None, [node("head", 0), node("a", 8, 4), node("b", 8, 4)], source="")
    assert (gpus.num_workers, gpus.use_gpu) == (8, True)
    cpus = make_demand(None, [node("head", 0), node("a", 8), node("b", 8)], source="")
    assert (cpus.num_workers, cpus.use_gpu) == (2, False)


@pytest.mark.parametrize("job", ["jobs/nothing.py", "jobs/audit.py"])
def test_files_without_a_recipe_are_rejected(job):
    with pytest.raises(RecipeError, match=job):
        load_recipe(ROOT / job if "audit" in job else Path(job))
