"""A few damaged inputs for every reader; `python -m tests.fuzz` reads more."""

import os
from collections.abc import Callable

import pytest

from pipeline.errors import PipelineError
from tests.fuzz import run
from tests.fuzz.readers import NAMES, Reader, make_readers
from tests.fuzz.run import feed, format_findings, make_input

INPUTS = 25


@pytest.fixture
def reader(request, tmp_path) -> Reader:
    return make_readers(tmp_path)[request.param]()


@pytest.mark.parametrize(("name", "reader"), [(n, n) for n in NAMES], indirect=["reader"])
def test_a_damaged_input_is_read_or_refused_with_a_reason(name: str, reader: Reader):
    """And the valid ones are accepted: else every damaged one is refused for the wrong reason."""
    assert all(reader.read(sample) for sample in reader.samples)
    report = feed(reader, name, seed=0, numbers=range(INPUTS))
    assert not report.findings, format_findings(report)
    assert report.inputs == report.refused + report.accepted == INPUTS
    assert report.refused > 0


def test_an_input_is_made_again_from_its_seed_and_number(tmp_path):
    first, second = (make_readers(tmp_path)["coco"]() for _ in range(2))
    inputs = [make_input(first, "coco", seed=3, number=number) for number in range(50)]
    assert len(set(inputs)) > 40
    again = [make_input(second, "coco", seed=3, number=number) for number in reversed(range(50))]
    assert inputs == again[::-1]


def fail(data: bytes) -> bool:
    return bool(data[10**6])


def refuse(reason: str) -> Callable[[bytes], bool]:
    def read(_: bytes) -> bool:
        raise PipelineError(reason)

    return read


def call_system(_: bytes) -> bool:
    return os.system("true") == 0  # noqa: S605


def loop(_: bytes) -> bool:
    while True:
        pass


def die(_: bytes) -> bool:
    os._exit(3)


@pytest.mark.parametrize(
    ("read", "finding"),
    [
        (fail, "IndexError at test_readers.py:"),
        (refuse(""), "no reason: "),
        (refuse("x" * 30_000), "a reason of more than 20000 characters"),
        (call_system, "_ForbiddenError at "),
        (die, "the process died, status 768"),
        (loop, "_HungError at "),
        (lambda _: sum(iter(int, 1)) == 0, "the process died, status 26"),
    ],
    ids=["fails", "says nothing", "says too much", "calls", "dies", "hangs", "hangs in C"],
)
def test_what_no_reader_may_do_is_found(monkeypatch, read, finding: str):
    monkeypatch.setattr(run, "SECONDS", 0.2)
    broken = Reader([b"abc"], lambda data, _: data, read)
    report = run.run_apart("broken", lambda: broken, inputs=2, seed=0, seconds=9)
    assert [each.startswith(finding) for each in report.findings] == [True]
    assert report.count.total() == 2
