from dataclasses import replace

import pytest

from pipeline.doctor.checks import (
    check_all_reduce,
    check_authentication,
    check_clocks,
    check_disk,
    check_gpus,
    check_nodes,
    check_shared_memory,
    check_storage,
    check_tracking,
    check_versions,
    report_no_ray,
)
from pipeline.doctor.facts import (
    AllReduce,
    Authentication,
    Clock,
    Gpu,
    Node,
    NodeFacts,
    StorageTrip,
    Tracking,
)
from pipeline.errors import SetupError

GIB = 2**30
A100 = Gpu(name="NVIDIA A100", memory_mib=40960, driver="580.65")
FACTS = NodeFacts(
    python="3.11.14",
    versions={"ray": "2.60.0", "torch": "2.15.0", "mlflow": "3.17.2"},
    code="0123abcd",
    cuda_build="13.2",
    gpus=(A100, A100),
    gpus_error="",
    disk_free_bytes=80 * GIB,
    disk_total_bytes=100 * GIB,
    shm_total_bytes=32 * GIB,
)
NODE = Node(
    node_id="a" * 56,
    name="10.0.0.1",
    cpus=16,
    gpus=2,
    object_store_bytes=20 * GIB,
    is_head=True,
    facts=FACTS,
    clock=Clock(offset_s=0.0, error_s=0.001),
)
OTHER = replace(NODE, node_id="b" * 56, name="10.0.0.2", is_head=False)
TRIP = StorageTrip(
    uri="/mnt/bsm/runs",
    is_local=True,
    wrote={"10.0.0.1": "", "10.0.0.2": ""},
    read={"10.0.0.1": "", "10.0.0.2": ""},
    read_from={"10.0.0.1": "10.0.0.2", "10.0.0.2": "10.0.0.1"},
)


def with_facts(**changed):
    """Return the second node with other facts."""
    return replace(OTHER, facts=replace(FACTS, **changed))


def test_a_healthy_cluster_has_no_problem():
    nodes = [NODE, OTHER]
    server = Tracking(uri="http://mlflow:5000", is_embedded=False, errors={"10.0.0.1": ""})
    summed = AllReduce(
        backend="nccl", nodes=("10.0.0.1", "10.0.0.2"), sent_bytes=2**26, seconds=0.01
    )
    locked = Authentication(status=401, mode="token", address="127.0.0.1:8265")
    findings = [
        check_nodes(nodes),
        check_versions(nodes, expected=FACTS),
        check_gpus(nodes, use_gpu=True),
        check_authentication(locked, node_count=2),
        check_clocks(nodes),
        check_disk(nodes),
        check_shared_memory(nodes),
        check_storage(TRIP, node_count=2),
        check_tracking(server, storage=TRIP, node_count=2),
        check_all_reduce(summed),
    ]
    assert [f for f in findings if f.level != "ok" or f.fix] == []
    assert "2 nodes" in findings[0].text
    assert "4: NVIDIA A100 (40 GiB), driver 580.65" in findings[2].text
    # Each of two processes sends 64 MiB in 10 ms.
    assert "6.71 GB/s" in findings[-1].text


@pytest.mark.parametrize(
    ("finding", "level", "says"),
    [
        (
            check_nodes([NODE, replace(OTHER, facts=None, error="no answer in 60 s")]),
            "FAIL",
            "1 of 2 nodes did not answer: 10.0.0.2: no answer in 60 s",
        ),
        (
            check_versions([NODE, with_facts(python="3.12.1")], expected=FACTS),
            "FAIL",
            "python 3.12.1 on 10.0.0.2, 3.11.14 here",
        ),
        (
            check_versions(
                [NODE, with_facts(versions={**FACTS.versions, "torch": ""})], expected=FACTS
            ),
            "FAIL",
            "torch missing on 10.0.0.2, 2.15.0 here",
        ),
        (
            check_versions([NODE, with_facts(code="ffff0000")], expected=FACTS),
            "FAIL",
            "code ffff0000 on 10.0.0.2",
        ),
        (
            check_versions([NODE, with_facts(code="")], expected=FACTS),
            "FAIL",
            "missing on 10.0.0.2",
        ),
        (
            check_gpus([NODE, with_facts(gpus=(A100,))], use_gpu=True),
            "FAIL",
            "10.0.0.2: Ray counts 2, the driver 1",
        ),
        (
            check_gpus([NODE, replace(OTHER, gpus=1.0)], use_gpu=True),
            "warning",
            "Ray counts 3",
        ),
        (
            check_gpus([NODE, with_facts(gpus=(A100, replace(A100, name="L4")))], use_gpu=True),
            "warning",
            "not alike",
        ),
        (
            check_gpus([NODE, with_facts(cuda_build="")], use_gpu=True),
            "FAIL",
            "without CUDA on 10.0.0.2",
        ),
        (
            check_gpus([NODE, with_facts(gpus=(), gpus_error="nvidia-smi: lost")], use_gpu=True),
            "FAIL",
            "nvidia-smi: lost",
        ),
        (
            check_gpus([replace(OTHER, gpus=0, facts=replace(FACTS, gpus=()))], use_gpu=True),
            "FAIL",
            "none, and the job trains on GPUs",
        ),
        (
            check_authentication(
                Authentication(status=200, mode="disabled", address="10.0.0.1:8265"), node_count=1
            ),
            "FAIL",
            "anyone who reaches it can run code here",
        ),
        (
            check_authentication(
                Authentication(status=200, mode="disabled", address="127.0.0.1:8265"), node_count=1
            ),
            "warning",
            "requires no token",
        ),
        (
            check_clocks([NODE, replace(OTHER, clock=Clock(offset_s=4.0, error_s=0.5))]),
            "warning",
            "10.0.0.2 is 3.5 s ahead of 10.0.0.1",
        ),
        (
            check_clocks([NODE, replace(OTHER, clock=Clock(offset_s=-900.0, error_s=0.001))]),
            "FAIL",
            "10.0.0.1 is 900.0 s ahead of 10.0.0.2",
        ),
        (
            check_disk([NODE, with_facts(disk_free_bytes=2 * GIB)]),
            "FAIL",
            "10.0.0.2: 98% full",
        ),
        (check_disk([NODE, with_facts(disk_free_bytes=9 * GIB)]), "warning", "9 GiB free"),
        (
            check_shared_memory([NODE, with_facts(shm_total_bytes=GIB // 16)]),
            "warning",
            "10.0.0.2: 0.062 GiB for an object store of 20 GiB",
        ),
        (
            check_storage(
                replace(TRIP, wrote={"10.0.0.1": "", "10.0.0.2": "PermissionError"}), node_count=2
            ),
            "FAIL",
            "cannot be written on 1 of 2 nodes: 10.0.0.2: PermissionError",
        ),
        (
            check_storage(
                replace(TRIP, read={"10.0.0.1": "FileNotFoundError: not there", "10.0.0.2": ""}),
                node_count=2,
            ),
            "FAIL",
            "is not shared: the file of 10.0.0.2 is missing on 10.0.0.1",
        ),
        (
            check_storage(
                replace(TRIP, read={"10.0.0.1": "ValueError: other bytes"}), node_count=2
            ),
            "FAIL",
            "cannot be read back",
        ),
        (
            check_storage(replace(TRIP, left_over="no"), node_count=2),
            "warning",
            "not deleted",
        ),
        (
            check_tracking(
                Tracking(uri="http://m", is_embedded=False, errors={"10.0.0.2": "refused"}),
                storage=TRIP,
                node_count=2,
            ),
            "FAIL",
            "http://m does not answer on 1 of 2 nodes: 10.0.0.2: refused",
        ),
        (
            check_tracking(
                Tracking(uri="sqlite:////tmp/mlflow.db", is_embedded=True),
                storage=TRIP,
                node_count=2,
            ),
            "FAIL",
            "a different one on each node",
        ),
        (
            check_tracking(
                Tracking(uri="sqlite:////mnt/bsm/runs/mlflow.db", is_embedded=True),
                storage=TRIP,
                node_count=2,
            ),
            "warning",
            "one writer at a time",
        ),
        (
            check_tracking(
                Tracking(uri="sqlite:////mnt/bsm/runs/mlflow.db", is_embedded=True),
                storage=replace(TRIP, wrote={"10.0.0.1": "PermissionError"}),
                node_count=1,
            ),
            "FAIL",
            "a folder that cannot be written",
        ),
        (
            check_all_reduce(AllReduce(backend="gloo", nodes=("a", "b"), error="a: timed out")),
            "FAIL",
            "gloo between 2 nodes: a: timed out",
        ),
        (
            check_all_reduce(
                AllReduce(backend="nccl", nodes=("a", "b"), error="b: no answer", stage="start")
            ),
            "FAIL",
            "b: no answer",
        ),
        (
            check_all_reduce(
                AllReduce(backend="gloo", nodes=("a", "b"), sent_bytes=2**26, seconds=4.0)
            ),
            "warning",
            # 180 MB at 64 MiB in 4 s.
            "waits 10.7 s",
        ),
        (
            report_no_ray(SetupError("cannot connect to RAY_ADDRESS=head:6379", "start Ray")),
            "FAIL",
            "cannot connect to RAY_ADDRESS=head:6379",
        ),
    ],
    ids=lambda value: value.check if hasattr(value, "check") else "",
)
def test_each_problem_is_reported_with_a_fix(finding, level, says):
    assert (finding.level, says in finding.text) == (level, True), finding
    assert finding.fix


def test_the_same_error_of_many_nodes_is_written_once():
    names = [f"10.0.0.{number}" for number in range(1, 9)]
    found = Tracking(uri="http://m", is_embedded=False, errors=dict.fromkeys(names, "refused"))
    text = check_tracking(found, storage=None, node_count=8).text
    assert text.count("refused") == 1
    assert "8 of 8 nodes: 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, and 4 more: refused" in text


def test_clock_uncertainty_is_resolved_in_the_nodes_favor():
    slow = replace(OTHER, clock=Clock(offset_s=1.5, error_s=1.0))
    assert check_clocks([NODE, slow]).level == "ok"


def test_a_cpu_only_cluster_is_reported_as_such():
    bare = replace(NODE, gpus=0, facts=replace(FACTS, gpus=(), cuda_build=""))
    finding = check_gpus([bare], use_gpu=False)
    assert (finding.level, finding.text) == ("ok", "none: a CPU-only cluster")
