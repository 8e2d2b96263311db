"""Feed a reader damaged inputs, in this process or in one of its own, and count what happens."""

import json
import mmap
import os
import resource
import signal
import struct
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from tests.fuzz.readers import Reader

SECONDS = 5.0
"""Longest time of one input."""
_MEMORY = 2**30
"""An input may add this much to the process."""
_ADDRESSES = 6 * 2**30
"""Beyond those of the process at its start, an allocation fails."""
_MAX_REASON = 20_000
"""Characters; a reason is for people."""
_CALLS = frozenset({"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork"})
"""Audit events of Python that no reader may cause."""


@dataclass
class Report:
    """What became of the inputs of a reader."""

    reader: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    findings: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of the inputs, by what happened."""
    count: Counter[str] = field(default_factory=Counter)


class _HungError(BaseException):
    """An input took too long."""


class _ForbiddenError(BaseException):
    """An input made the process call the system."""


def make_input(reader: Reader, name: str, *, seed: int, number: int) -> bytes:
    """Make one damaged input; equal arguments make equal inputs."""
    random = Random(f"{name} {seed} {number}")  # noqa: S311  not for secrets
    return reader.mutate(random.choice(reader.samples), random)


def feed(reader: Reader, name: str, *, seed: int, numbers: range) -> Report:
    """Read inputs in this process, and count them."""
    report = Report(name)
    for number in numbers:
        feed_one(reader, report, make_input(reader, name, seed=seed, number=number), number=number)
    return report


def feed_one(reader: Reader, report: Report, data: bytes, *, number: int) -> str:
    """Read an input, count it, and return what is wrong with how it was read, or ""."""
    before = _peak_bytes()
    finding = ""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            accepted = reader.read(data)
        report.accepted += accepted
        report.refused += not accepted
        finding = _check_warnings(caught)
    except reader.refusals as error:
        report.refused += 1
        finding = _check_reason(error)
    except (Exception, _HungError, _ForbiddenError) as error:
        finding = _describe(error)
    report.inputs += 1
    grown = _peak_bytes() - before
    if grown > _MEMORY and not finding:
        finding = f"{grown / 2**30:.0f} GB of memory"
    if finding:
        report.count[finding] += 1
        report.findings.setdefault(finding, []).append(number)
        del report.findings[finding][5:]
    return finding


def _check_warnings(caught: list[warnings.WarningMessage]) -> str:
    first = next((each for each in caught if issubclass(each.category, RuntimeWarning)), None)
    return f"warning: {first.message} ({first.filename}:{first.lineno})" if first else ""


def _check_reason(error: Exception) -> str:
    text = str(error)
    if not text.strip():
        return f"no reason: {_describe(error)}"
    if len(text) > _MAX_REASON:
        return f"a reason of more than {_MAX_REASON} characters: {_describe(error)}"
    return ""


def _describe(error: BaseException) -> str:
    """Name an exception and the last line of this package that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if "/bsm/" in each.filename or "/pipeline/" in each.filename]
    last = (own or frames)[-1]
    place = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno} {last.name}"
    return f"{type(error).__name__} at {place}: {str(error)[:70]!r}"


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_apart(
    name: str, make: Callable[[], Reader], *, inputs: int, seed: int, seconds: float
) -> Report:
    """Read inputs in a process of its own; if one kills it, go on after that one."""
    shared = mmap.mmap(-1, 8)
    total, first = Report(name), 0
    while first < inputs:
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            try:
                _run_child(name, make, shared, send, range(first, inputs), seed, seconds)
            finally:
                os._exit(1)
        os.close(send)
        with os.fdopen(receive, "rb") as stream:
            written = stream.read()
        _, status = os.waitpid(child, 0)
        if written:
            _add(total, json.loads(written))
            break
        (at,) = struct.unpack("<q", shared[:8])
        death = f"the process died, status {status}"
        total.findings.setdefault(death, []).append(at)
        total.count[death] += 1
        first = at + 1
    return total


def _add(total: Report, plain: dict) -> None:
    for key in ("inputs", "refused", "accepted"):
        setattr(total, key, getattr(total, key) + plain[key])
    total.findings |= plain["findings"]
    total.count.update(plain["count"])


def _run_child(
    name: str,
    make: Callable[[], Reader],
    shared: mmap.mmap,
    send: int,
    numbers: range,
    seed: int,
    seconds: float,
) -> None:
    reader, report = make(), Report(name)
    _limit_process()
    signal.setitimer(signal.ITIMER_PROF, seconds)
    is_late = []
    signal.signal(signal.SIGPROF, lambda *_: is_late.append(1))
    for number in numbers:
        if is_late:
            break
        shared[:8] = struct.pack("<q", number)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        # A handler waits for Python's next step, and C may never take one: then the process dies.
        signal.setitimer(signal.ITIMER_VIRTUAL, 3 * SECONDS)
        feed_one(reader, report, make_input(reader, name, seed=seed, number=number), number=number)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    plain = {key: getattr(report, key) for key in ("inputs", "refused", "accepted", "findings")}
    with os.fdopen(send, "wb") as stream:
        stream.write(json.dumps({**plain, "count": report.count}).encode())


def _limit_process() -> None:
    def stop(_: int, __: FrameType | None) -> None:
        raise _HungError(f"more than {SECONDS:g} s")

    def watch(event: str, _: object) -> None:
        if event in _CALLS:
            raise _ForbiddenError(event)

    signal.signal(signal.SIGALRM, stop)
    sys.addaudithook(watch)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESSES, used + _ADDRESSES))


def format_findings(report: Report) -> str:
    """Lay out the findings of a reader, with the numbers of inputs that show each."""
    return "".join(
        f"{report.reader}: {what}\n    {report.count[what]} times, inputs {numbers}\n"
        for what, numbers in report.findings.items()
    )


def format_row(report: Report) -> str:
    """Lay out the counts of a reader, below HEADER."""
    counts = (report.inputs, report.refused, report.accepted, len(report.findings))
    return f"{report.reader:18}" + "".join(f"{count:>10}" for count in counts)


HEADER = f"{'reader':18}" + "".join(
    f"{name:>10}" for name in ("inputs", "refused", "accepted", "findings")
)


def add_up(reports: list[Report]) -> Report:
    """Add the counts of all readers; what they found has the reader's name."""
    total = Report("all")
    for each in reports:
        total.inputs += each.inputs
        total.refused += each.refused
        total.accepted += each.accepted
        total.findings |= {f"{each.reader}: {k}": v for k, v in each.findings.items()}
    return total
