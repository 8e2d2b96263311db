"""Check whether a Ray cluster can train, and suggest a fix for each problem.

Each check prints one line, ok, warning or FAIL, and a fix below it. Every query of a node has a
timeout, so a node that hangs is reported instead of waited for.
"""

import dataclasses
import logging
import os
import time
from pathlib import Path
from typing import Any

from pipeline.doctor import all_reduce, checks, collect, probe
from pipeline.doctor.capacity import check_capacity
from pipeline.doctor.collect import Probes, pickle_by_value, start_probes
from pipeline.doctor.demand import apply_flags, load_recipe, make_demand
from pipeline.doctor.facts import Demand, Finding, Node, StorageTrip
from pipeline.errors import ClusterError, SetupError
from pipeline.ray_connection import connect
from pipeline.recipe import ScaleConfig
from pipeline.storage import absolute, is_local
from pipeline.training.capacity import count_cpus

_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 10.0
_LOCAL_STORAGE = "runs"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Report:
    """The options of the checks, and their findings so far."""

    storage_uri: str
    """"" if unknown."""
    tracking_uri: str
    timeout_s: float
    findings: list[Finding] = dataclasses.field(default_factory=list)
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        """Add a finding, and log it at once, since some checks take a while."""
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
    """Check the cluster of a submitted job, the one in RAY_ADDRESS, or this machine.

    Args:
        job: training job whose resources, storage and tracking are checked; other flags override.
        storage: folder or URI for the results.
        tracking_uri: MLflow server; "" is the embedded store.
        num_workers: number of workers, instead of the job's.
        cpus_per_worker: CPUs of each worker, instead of the job's.
        use_gpu: a GPU for each worker, even if the job uses none.
        wait_s: request the job's resources from an autoscaler, and wait up to this long for them.
        timeout_s: timeout of each query.

    Returns:
        The RESULT line.

    Raises:
        ClusterError: a check failed; carries the RESULT line.
        RecipeError: the job or a flag is invalid.
    """
    began = time.monotonic()
    recipe = load_recipe(job) if job else None
    scale = apply_flags(
        recipe, num_workers=num_workers, cpus_per_worker=cpus_per_worker, use_gpu=use_gpu
    )
    report = _Report(
        storage_uri=_storage_uri(storage or (recipe.storage if recipe else "")),
        tracking_uri=tracking_uri or (recipe.tracking.uri if recipe else ""),
        timeout_s=timeout_s,
    )
    try:
        connect(cpus=count_cpus(scale or ScaleConfig(num_workers=1)))
    except SetupError as error:
        report.add(checks.report_no_ray(error))
    else:
        _check_cluster(report, scale, source=str(job) if job else "flags", wait_s=wait_s)
    return _make_result(report, seconds=time.monotonic() - began)


def _storage_uri(named: str) -> str:
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if not submitted:
        return absolute(named or _LOCAL_STORAGE)
    # A submitted job runs in a temporary copy of the working directory, which is deleted.
    is_lost = not named or (is_local(named) and not named.startswith(("/", "file://")))
    return "" if is_lost else absolute(named)


def _check_cluster(
    report: _Report, scale: ScaleConfig | None, *, source: str, wait_s: float
) -> None:
    nodes, folders = collect.list_nodes()
    demand = make_demand(scale, nodes, source=source)
    if wait_s > 0:
        collect.wait_for_nodes(demand, wait_s=wait_s)
        nodes, folders = collect.list_nodes()
    with (
        pickle_by_value(probe),
        pickle_by_value(all_reduce),
        start_probes(nodes, report.timeout_s) as probes,
    ):
        nodes = collect.query_facts(nodes, probes, folders=folders)
        report.add(checks.check_nodes(nodes))
        _check_nodes(report, nodes, probes, demand)
        answering = [node for node in nodes if node.facts]
        if answering:
            _check_between_nodes(report, answering, probes, demand)
    report.numbers["nodes"] = len(nodes)
    report.numbers["gpus"] = int(sum(node.gpus for node in nodes))


def _check_nodes(report: _Report, nodes: list[Node], probes: Probes, demand: Demand) -> None:
    here = collect.parse_facts(probe.collect_facts(str(Path.cwd())))
    report.add(checks.check_versions(nodes, expected=here))
    report.add(checks.check_gpus(nodes, use_gpu=demand.use_gpu))
    report.add(check_capacity(nodes, demand))
    answering = [node for node in nodes if node.facts]
    found = collect.try_authentication(answering, probes, timeout_s=_CONNECT_TIMEOUT_S)
    report.add(checks.check_authentication(found, node_count=len(nodes)))
    report.add(checks.check_clocks(collect.measure_clocks(nodes, probes)))
    report.add(checks.check_disk(nodes))
    report.add(checks.check_shared_memory(nodes))


def _check_between_nodes(
    report: _Report, nodes: list[Node], probes: Probes, demand: Demand
) -> None:
    trip: StorageTrip | None = None
    if report.storage_uri:
        trip = collect.try_storage(report.storage_uri, nodes, probes)
        report.add(checks.check_storage(trip, node_count=len(nodes)))
    else:
        report.add(checks.skip_storage())
    tracked = collect.try_tracking(
        report.tracking_uri,
        storage_uri=report.storage_uri or _LOCAL_STORAGE,
        nodes=nodes,
        probes=probes,
    )
    report.add(checks.check_tracking(tracked, storage=trip, node_count=len(nodes)))
    summed = all_reduce.run_all_reduce(nodes, use_gpu=demand.use_gpu, timeout_s=report.timeout_s)
    report.add(checks.check_all_reduce(summed))
    if summed and not summed.error:
        report.numbers["all_reduce_gb_per_s"] = round(summed.bytes_per_s / 1e9, 3)


def _make_result(report: _Report, *, seconds: float) -> dict[str, Any]:
    failed = [finding.check for finding in report.findings if finding.level == "FAIL"]
    result: dict[str, Any] = {
        "healthy": not failed,
        "checks": {
            finding.check: {"level": finding.level, "text": finding.text, "fix": finding.fix}
            for finding in report.findings
        },
        **report.numbers,
        "seconds": round(seconds, 1),
    }
    if failed:
        raise ClusterError(f"this cluster cannot train: {', '.join(failed)}", result=result)
    warned = [finding.check for finding in report.findings if finding.level == "warning"]
    _log.info("this cluster can train%s", f"; warnings: {', '.join(warned)}" if warned else "")
    return result
