"""What the doctor makes of what it found: each sickness is a red line that says what to type."""

from dataclasses import replace

import pytest

from pipeline.doctor import judge
from pipeline.doctor.facts import (
    AllReduce,
    Answer,
    Authentication,
    Clock,
    Gpu,
    Node,
    RoundTrip,
    Tracking,
)

GIB = 2**30
A100 = Gpu(name="NVIDIA A100", memory_mib=40960, driver="580.65")
WELL = Answer(
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
    answer=WELL,
    clock=Clock(offset_s=0.0, error_s=0.001),
)
OTHER = replace(NODE, node_id="b" * 56, name="10.0.0.2", is_head=False)
TRIP = RoundTrip(
    uri="/mnt/bsm/runs",
    is_local=True,
    wrote={"10.0.0.1": "", "10.0.0.2": ""},
    read={"10.0.0.1": "", "10.0.0.2": ""},
    read_from={"10.0.0.1": "10.0.0.2", "10.0.0.2": "10.0.0.1"},
)


def with_answer(**changed):
    """The second node, with something else to say."""
    return replace(OTHER, answer=replace(WELL, **changed))


def test_a_healthy_cluster_has_no_fault():
    nodes = [NODE, OTHER]
    server = Tracking(uri="http://mlflow:5000", is_embedded=False, errors={"10.0.0.1": ""})
    summed = AllReduce(
        backend="nccl", nodes=("10.0.0.1", "10.0.0.2"), sent_bytes=2**26, seconds=0.01
    )
    locked = Authentication(status=401, mode="token", address="127.0.0.1:8265")
    findings = [
        judge.answering(nodes),
        judge.versions(nodes, expected=WELL),
        judge.gpus(nodes, use_gpu=True),
        judge.authentication(locked, node_count=2),
        judge.clocks(nodes),
        judge.disk(nodes),
        judge.shared_memory(nodes),
        judge.storage(TRIP, node_count=2),
        judge.tracking(server, storage=TRIP, node_count=2),
        judge.all_reduce(summed),
    ]
    assert [f for f in findings if f.level != "ok" or f.fix] == []
    assert "2 nodes" in findings[0].text
    assert "4: NVIDIA A100 (40 GiB), driver 580.65" in findings[2].text
    # Two processes send each byte once: 64 MiB in 10 ms.
    assert "6.71 GB/s" in findings[-1].text


@pytest.mark.parametrize(
    ("finding", "level", "says"),
    [
        (
            judge.answering([NODE, replace(OTHER, answer=None, error="no answer in 60 s")]),
            "FAIL",
            "1 of 2 nodes did not answer: 10.0.0.2: no answer in 60 s",
        ),
        (
            judge.versions([NODE, with_answer(python="3.12.1")], expected=WELL),
            "FAIL",
            "python 3.12.1 on 10.0.0.2, 3.11.14 here",
        ),
        (
            judge.versions(
                [NODE, with_answer(versions={**WELL.versions, "torch": ""})], expected=WELL
            ),
            "FAIL",
            "torch missing on 10.0.0.2, 2.15.0 here",
        ),
        (
            judge.versions([NODE, with_answer(code="ffff0000")], expected=WELL),
            "FAIL",
            "code ffff0000 on 10.0.0.2",
        ),
        (
            judge.versions([NODE, with_answer(code="")], expected=WELL),
            "FAIL",
            "missing on 10.0.0.2",
        ),
        (
            judge.gpus([NODE, with_answer(gpus=(A100,))], use_gpu=True),
            "FAIL",
            "10.0.0.2: Ray counts 2, the driver 1",
        ),
        (
            judge.gpus([NODE, replace(OTHER, gpus=1.0)], use_gpu=True),
            "warning",
            "Ray counts 3",
        ),
        (
            judge.gpus([NODE, with_answer(gpus=(A100, replace(A100, name="L4")))], use_gpu=True),
            "warning",
            "not alike",
        ),
        (
            judge.gpus([NODE, with_answer(cuda_build="")], use_gpu=True),
            "FAIL",
            "without CUDA on 10.0.0.2",
        ),
        (
            judge.gpus([NODE, with_answer(gpus=(), gpus_error="nvidia-smi: lost")], use_gpu=True),
            "FAIL",
            "nvidia-smi: lost",
        ),
        (
            judge.gpus([replace(OTHER, gpus=0, answer=replace(WELL, gpus=()))], use_gpu=True),
            "FAIL",
            "none, and the job trains on GPUs",
        ),
        (
            judge.authentication(
                Authentication(status=200, mode="disabled", address="10.0.0.1:8265"), node_count=1
            ),
            "FAIL",
            "whoever reaches it runs code here",
        ),
        (
            judge.authentication(
                Authentication(status=200, mode="disabled", address="127.0.0.1:8265"), node_count=1
            ),
            "warning",
            "asks for no token",
        ),
        (
            judge.clocks([NODE, replace(OTHER, clock=Clock(offset_s=4.0, error_s=0.5))]),
            "warning",
            "10.0.0.2 is 3.5 s ahead of 10.0.0.1",
        ),
        (
            judge.clocks([NODE, replace(OTHER, clock=Clock(offset_s=-900.0, error_s=0.001))]),
            "FAIL",
            "10.0.0.1 is 900.0 s ahead of 10.0.0.2",
        ),
        (
            judge.disk([NODE, with_answer(disk_free_bytes=2 * GIB)]),
            "FAIL",
            "10.0.0.2: 98% full",
        ),
        (judge.disk([NODE, with_answer(disk_free_bytes=9 * GIB)]), "warning", "9 GiB free"),
        (
            judge.shared_memory([NODE, with_answer(shm_total_bytes=GIB // 16)]),
            "warning",
            "10.0.0.2: 0.062 GiB for an object store of 20 GiB",
        ),
        (
            judge.storage(
                replace(TRIP, wrote={"10.0.0.1": "", "10.0.0.2": "PermissionError"}), node_count=2
            ),
            "FAIL",
            "cannot be written on 1 of 2 nodes: 10.0.0.2: PermissionError",
        ),
        (
            judge.storage(
                replace(TRIP, read={"10.0.0.1": "FileNotFoundError: not there", "10.0.0.2": ""}),
                node_count=2,
            ),
            "FAIL",
            "is not shared: what 10.0.0.2 wrote is not there on 10.0.0.1",
        ),
        (
            judge.storage(
                replace(TRIP, read={"10.0.0.1": "ValueError: other bytes"}), node_count=2
            ),
            "FAIL",
            "is not read as it was written",
        ),
        (judge.storage(replace(TRIP, left_over="no"), node_count=2), "warning", "not deleted"),
        (
            judge.tracking(
                Tracking(uri="http://m", is_embedded=False, errors={"10.0.0.2": "refused"}),
                storage=TRIP,
                node_count=2,
            ),
            "FAIL",
            "http://m does not answer on 1 of 2 nodes: 10.0.0.2: refused",
        ),
        (
            judge.tracking(
                Tracking(uri="sqlite:////tmp/mlflow.db", is_embedded=True),
                storage=TRIP,
                node_count=2,
            ),
            "FAIL",
            "each node has for itself",
        ),
        (
            judge.tracking(
                Tracking(uri="sqlite:////mnt/bsm/runs/mlflow.db", is_embedded=True),
                storage=TRIP,
                node_count=2,
            ),
            "warning",
            "one writer at a time",
        ),
        (
            judge.tracking(
                Tracking(uri="sqlite:////mnt/bsm/runs/mlflow.db", is_embedded=True),
                storage=replace(TRIP, wrote={"10.0.0.1": "PermissionError"}),
                node_count=1,
            ),
            "FAIL",
            "nothing can be written",
        ),
        (
            judge.all_reduce(AllReduce(backend="gloo", nodes=("a", "b"), error="a: timed out")),
            "FAIL",
            "gloo between 2 nodes: a: timed out",
        ),
        (
            judge.all_reduce(
                AllReduce(backend="nccl", nodes=("a", "b"), error="b: no answer", stage="start")
            ),
            "FAIL",
            "b: no answer",
        ),
        (
            judge.all_reduce(
                AllReduce(backend="gloo", nodes=("a", "b"), sent_bytes=2**26, seconds=4.0)
            ),
            "warning",
            # 180 MB at 64 MiB in 4 s.
            "waits 10.7 s",
        ),
        (
            judge.no_ray("head:6379", "AuthenticationError: wrong"),
            "FAIL",
            "RAY_ADDRESS=head:6379 does not let this process in",
        ),
    ],
    ids=lambda value: value.check if hasattr(value, "check") else "",
)
def test_each_sickness_is_named_with_its_fix(finding, level, says):
    assert (finding.level, says in finding.text) == (level, True), finding
    assert finding.fix


def test_one_sentence_of_many_nodes_is_said_once():
    names = [f"10.0.0.{number}" for number in range(1, 9)]
    found = Tracking(uri="http://m", is_embedded=False, errors=dict.fromkeys(names, "refused"))
    text = judge.tracking(found, storage=None, node_count=8).text
    assert text.count("refused") == 1
    assert "8 of 8 nodes: 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, and 4 more: refused" in text


def test_the_clocks_of_a_slow_network_are_given_the_benefit_of_the_doubt():
    slow = replace(OTHER, clock=Clock(offset_s=1.5, error_s=1.0))
    assert judge.clocks([NODE, slow]).level == "ok"


def test_a_cluster_of_cpus_is_said_to_be_one():
    bare = replace(NODE, gpus=0, answer=replace(WELL, gpus=(), cuda_build=""))
    finding = judge.gpus([bare], use_gpu=False)
    assert (finding.level, finding.text) == ("ok", "none: a CPU-only cluster")
