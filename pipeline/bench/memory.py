"""Measure the memory of each process of a run as its data grows: 1 x, 4 x, 16 x the images.

Images are tiny, because only their number matters: the largest data set has as many images and
objects as COCO's train2017.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.bench.coco_folder import write_coco_folder
from pipeline.bench.memory_probe import PARTS
from pipeline.bench.peers import cache_folder
from pipeline.bench.report import Result
from pipeline.errors import RecipeError
from pipeline.text import format_markdown

SCALES = (1, 4, 16)
_SIZE_HW = (48, 64)
_BAR = 1.1
"""Limit of the memory at the largest scale, divided by that at the smallest."""


def bench_memory(*, images: int, objects: int, print_line: Callable[[str], None]) -> Result:
    """Measure the peak of ingest, driver, data tasks and worker.

    Args:
        images: of the largest data set.
        objects: per image.
        print_line: called with a line for each process.
    """
    peaks: dict[str, list[float]] = {part: [] for part in PARTS}
    for scale in SCALES:
        count = images * scale // SCALES[-1]
        folder = cache_folder() / f"tiny-{count}-{objects}"
        write_coco_folder(folder, images=count, objects=objects, size_hw=_SIZE_HW)
        shards = folder / "shards"
        shutil.rmtree(shards, ignore_errors=True)  # ingest would keep them
        for part in PARTS:
            arguments = [str(folder), str(shards)] if part == "ingest" else [str(shards)]
            answer = run_part("memory_probe", part, arguments)
            peaks[part].append(answer["peak_mb"])
            peak, cpu = answer["peak_mb"], answer["cpu_s"]
            print_line(f"{part}, {count} images: {peak:.0f} MB, {cpu:.1f} s of CPU")
    header = ["process", *(f"{images * each // SCALES[-1]} images, MB" for each in SCALES)]
    rows = [[*header, f"at most {_BAR:g} x", "bytes per image"]]
    result: Result = {"images": images, "objects": objects}
    missed = []
    for part, values in peaks.items():
        growth = values[-1] / values[0]
        per_image = 1e6 * (values[-1] - values[0]) / (images - images // SCALES[-1])
        verdict = f"{growth:.2f}: {'yes' if growth <= _BAR else 'NO'}"
        rows.append([part, *(f"{each:.0f}" for each in values), verdict, f"{per_image:.0f}"])
        result[f"{part}: MB"] = [round(each) for each in values]
        if growth > _BAR:
            missed.append(part)
    print(format_markdown(rows))  # noqa: T201  the answer of the command
    return {**result, "missed": missed}


def run_part(probe: str, part: str, arguments: list[str]) -> dict[str, float]:
    """Run a part of a probe in a process of its own; return what it prints."""
    command = [sys.executable, "-m", f"pipeline.bench.{probe}", part, *arguments]
    done = subprocess.run(  # noqa: S603  our own file
        command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    if done.returncode:
        raise RecipeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer
