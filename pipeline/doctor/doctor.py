"""Say in plain words whether a Ray cluster can train, and what to do where it cannot.

One line for each check: ok, warning or FAIL, and the fix under it. Every question to a node has a
deadline, so a sick node ends up as a line instead of a wait.
"""

import dataclasses
import logging
import os
import time
from pathlib import Path
from typing import Any

from pipeline import storage as places
from pipeline.doctor import all_reduce as summing
from pipeline.doctor import collect, judge, probe
from pipeline.doctor.all_reduce import all_reduce
from pipeline.doctor.capacity import room
from pipeline.doctor.collect import Probes, probes_on, travelling
from pipeline.doctor.demand import demand_of, recipe_of, scale_of
from pipeline.doctor.facts import Demand, Finding, Node, RoundTrip
from pipeline.errors import ClusterError
from pipeline.ray_connection import connect
from pipeline.recipe import ScaleConfig
from pipeline.training.capacity import cpus_needed

_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 10.0
_LOCAL_STORAGE = "runs"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Patient:
    """What is looked at, and what was found so far."""

    storage_uri: str
    """"" where nobody said one and none can be guessed."""
    tracking_uri: str
    timeout_s: float
    findings: list[Finding] = dataclasses.field(default_factory=list)
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)

    def say(self, finding: Finding) -> None:
        """Tell at once: some checks take a while."""
        self.findings.append(finding)
        _log.info("%-8s %-15s %s", finding.level, finding.check, finding.text)
        if finding.fix:
            _log.info("%-8s %-15s fix: %s", "", "", finding.fix)


def doctor(
    *,
    job: Path | None = None,
    storage: str = "",
    tracking_uri: str = "",
    num_workers: int | None = None,
    cpus_per_worker: float | None = None,
    use_gpu: bool = False,
    wait_s: float = 0.0,
    timeout_s: float = 60.0,
) -> dict[str, Any]:
    """Look at the cluster that a job would use: the one it is submitted to, RAY_ADDRESS, or none.

    Args:
        job: the training job to make room for, such as jobs/coco_r101.py; where nothing else is
            said, its storage and tracking are looked at.
        storage: folder or URI that the job would write to.
        tracking_uri: MLflow server that the job would log to; "" is the embedded store.
        num_workers: workers to make room for, instead of the job's.
        cpus_per_worker: CPUs of each worker, instead of the job's.
        use_gpu: a GPU for each worker, whatever the job says.
        wait_s: ask an autoscaler for what the job needs, and wait up to so many seconds for it.
        timeout_s: longest wait for an answer.

    Returns:
        The RESULT line.

    Raises:
        ClusterError: a check failed; it carries the RESULT line.
        RecipeError: the job or a flag is wrong.
    """
    began = time.monotonic()
    recipe = recipe_of(job) if job else None
    scale = scale_of(
        recipe, num_workers=num_workers, cpus_per_worker=cpus_per_worker, use_gpu=use_gpu
    )
    patient = _Patient(
        storage_uri=_storage_uri(storage or (recipe.storage if recipe else "")),
        tracking_uri=tracking_uri or (recipe.tracking.uri if recipe else ""),
        timeout_s=timeout_s,
    )
    away = _connected(scale or ScaleConfig(num_workers=1))
    if away:
        patient.say(judge.no_ray(os.environ.get("RAY_ADDRESS", ""), away))
    else:
        _examine(patient, scale, source=str(job) if job else "flags", wait_s=wait_s)
    return _verdict(patient, seconds=time.monotonic() - began)


def _connected(scale: ScaleConfig) -> str:
    """Connect to Ray; "" or why not."""
    address = os.environ.get("RAY_ADDRESS", "")
    away = collect.nobody_listens(address, timeout_s=_CONNECT_TIMEOUT_S)
    if away:
        return away
    try:
        connect(cpus=cpus_needed(scale))
    except (ConnectionError, RuntimeError, ValueError) as error:
        return collect.refused(error)
    return ""


def _storage_uri(named: str) -> str:
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if not submitted:
        return places.absolute(named or _LOCAL_STORAGE)
    # A submitted job runs in a temporary copy of the working directory: nothing can lie there.
    is_lost = not named or (places.is_local(named) and not named.startswith(("/", "file://")))
    return "" if is_lost else places.absolute(named)


def _examine(patient: _Patient, scale: ScaleConfig | None, *, source: str, wait_s: float) -> None:
    nodes, folders = collect.nodes_of_ray()
    demand = demand_of(scale, nodes, source=source)
    if wait_s > 0:
        collect.wait_for_nodes(demand, wait_s=wait_s)
        nodes, folders = collect.nodes_of_ray()
    with travelling(probe), travelling(summing), probes_on(nodes, patient.timeout_s) as probes:
        nodes = collect.asked(nodes, probes, folders=folders)
        patient.say(judge.answering(nodes))
        _look_at_nodes(patient, nodes, probes, demand)
        answering = [node for node in nodes if node.answer]
        if answering:
            _look_between_nodes(patient, answering, probes, demand)
    patient.numbers["nodes"] = len(nodes)
    patient.numbers["gpus"] = int(sum(node.gpus for node in nodes))


def _look_at_nodes(patient: _Patient, nodes: list[Node], probes: Probes, demand: Demand) -> None:
    here = collect.answer_of(probe.facts(str(Path.cwd())))
    patient.say(judge.versions(nodes, expected=here))
    patient.say(judge.gpus(nodes, use_gpu=demand.use_gpu))
    patient.say(room(nodes, demand))
    answering = [node for node in nodes if node.answer]
    found = collect.authentication(answering, probes, timeout_s=_CONNECT_TIMEOUT_S)
    patient.say(judge.authentication(found, node_count=len(nodes)))
    patient.say(judge.clocks(collect.with_clocks(nodes, probes)))
    patient.say(judge.disk(nodes))
    patient.say(judge.shared_memory(nodes))


def _look_between_nodes(
    patient: _Patient, nodes: list[Node], probes: Probes, demand: Demand
) -> None:
    trip: RoundTrip | None = None
    if patient.storage_uri:
        trip = collect.round_trip(patient.storage_uri, nodes, probes)
        patient.say(judge.storage(trip, node_count=len(nodes)))
    else:
        patient.say(judge.storage_unnamed())
    tracked = collect.tracking(
        patient.tracking_uri,
        storage_uri=patient.storage_uri or _LOCAL_STORAGE,
        nodes=nodes,
        probes=probes,
    )
    patient.say(judge.tracking(tracked, storage=trip, node_count=len(nodes)))
    summed = all_reduce(nodes, use_gpu=demand.use_gpu, timeout_s=patient.timeout_s)
    patient.say(judge.all_reduce(summed))
    if summed and not summed.error:
        patient.numbers["all_reduce_gb_per_s"] = round(summed.bytes_per_s / 1e9, 3)


def _verdict(patient: _Patient, *, seconds: float) -> dict[str, Any]:
    failed = [finding.check for finding in patient.findings if finding.level == "FAIL"]
    result: dict[str, Any] = {
        "healthy": not failed,
        "checks": {
            finding.check: {"level": finding.level, "text": finding.text, "fix": finding.fix}
            for finding in patient.findings
        },
        **patient.numbers,
        "seconds": round(seconds, 1),
    }
    if failed:
        raise ClusterError(f"this cluster cannot train: {', '.join(failed)}", result=result)
    warned = [finding.check for finding in patient.findings if finding.level == "warning"]
    _log.info("this cluster can train%s", f"; warnings: {', '.join(warned)}" if warned else "")
    return result
