"""Measure plan, manifest and list of samples for data sets of millions of images."""

from collections.abc import Callable

from pipeline.bench.memory import run_part
from pipeline.bench.report import Result
from pipeline.text import format_markdown

_PARTS = {
    "plan": ("read_s", "first_s", "turn_s"),
    "samples": ("merge_s",),
}
_HEADER = (
    "images",
    "read the manifest, s",
    "first item, s",
    "item at the end of an epoch, s",
    "memory, MB",
    "join the samples of an epoch, s",
    "memory, MB",
)


def bench_scale(*, millions: tuple[int, ...], print_line: Callable[[str], None]) -> Result:
    """Measure each size in processes of their own.

    Args:
        millions: of images, each a row of the table.
        print_line: called with a line for each process.
    """
    rows: list[tuple[str, ...]] = [_HEADER]
    result: Result = {}
    for million in millions:
        cells = [f"{million} million"]
        for part, times in _PARTS.items():
            answer = run_part("scale_probe", part, [str(million * 1_000_000)])
            cells += [*(f"{answer[name]:.2f}" for name in times), f"{answer['grown_mb']:.0f}"]
            print_line(f"{part}, {million} million: {answer['cpu_s']:.1f} s of CPU")
            result |= {f"{part} {million}M: {name}": value for name, value in answer.items()}
        rows.append(tuple(cells))
    print(format_markdown(rows))  # noqa: T201  the answer of the command
    return result
