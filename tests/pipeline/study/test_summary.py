"""Means, paired differences and their intervals, on numbers that can be checked by hand."""

import math
from pathlib import Path

import pytest

from pipeline.study.summary import (
    BANDS,
    HeadRun,
    compare,
    draw_plot,
    format_gains,
    format_table,
)


def make_run(head: str, seed: int, values: list[float], **changes) -> HeadRun:
    fields = {
        "image_id": [1, 1, 2, 3],
        "area_px": [100.0, 2000.0, 10_000.0, 20_000.0],
        "iou": dict.fromkeys(("mask", *BANDS), values),
    }
    return HeadRun(head=head, seed=seed, train_s=1.0, **(fields | changes))


def shift(values: list[float], by: float) -> list[float]:
    return [value + by for value in values]


BASE = [0.2, 0.4, 0.6, 0.8]


def test_sizes_are_cocos():
    run = make_run("plain", 0, BASE)
    means = {size: run.mean("mask", size) for size in ("all", "small", "medium", "large")}
    assert means == pytest.approx({"all": 0.5, "small": 0.2, "medium": 0.4, "large": 0.7})
    assert math.isnan(make_run("plain", 0, BASE, area_px=[1.0] * 4).mean("mask", "large"))


def test_heads_are_compared_seed_by_seed():
    # The seed moves both heads by 0.1; the differences are 0.03, 0.01 and 0.02.
    others = [make_run("plain", seed, shift(BASE, 0.1 * seed)) for seed in range(3)]
    gains = (0.03, 0.01, 0.02)
    runs = [make_run("bsm", s, shift(BASE, 0.1 * s + gain)) for s, gain in enumerate(gains)]
    gain = compare(runs, others, measure="narrow", size="all")
    assert gain.mean == pytest.approx(0.02)
    # t of 97.5 % with two degrees of freedom, times the deviation 0.01, over the root of 3.
    assert gain.seeds == pytest.approx(4.303 * 0.01 / math.sqrt(3))
    assert gain.photos == pytest.approx(0, abs=1e-9), "every object gains the same"
    only_seed_2 = compare(runs[2:], others, measure="narrow", size="all")
    assert only_seed_2.mean == pytest.approx(0.02)
    assert math.isnan(only_seed_2.seeds)
    assert compare(runs, [make_run("plain", 7, BASE)], measure="narrow", size="all") is None


def test_objects_of_a_photo_are_one_cluster():
    gains = [0.1, 0.1, -0.1, -0.1]
    run = make_run("bsm", 0, [a + b for a, b in zip(BASE, gains, strict=True)])
    gain = compare([run], [make_run("plain", 0, BASE)], measure="mask", size="all")
    assert gain.mean == pytest.approx(0)
    # Sums of the three photos: 0.2, -0.1, -0.1; independent objects would give less.
    variance = 3 / 2 * (0.2**2 + 0.1**2 + 0.1**2) / 4**2
    assert gain.photos == pytest.approx(1.96 * math.sqrt(variance))
    alone = make_run("bsm", 0, run.iou["mask"], image_id=[1, 1, 1, 1])
    one_photo = compare([alone], [make_run("plain", 0, BASE)], measure="mask", size="all")
    assert math.isnan(one_photo.photos)


def test_tables_have_every_head_with_runs_in_order():
    runs = [
        make_run("bsm", 0, shift(BASE, 0.1)),
        make_run("plain", 0, BASE),
        make_run("plain", 1, shift(BASE, 0.2)),
        make_run("plain, refined", 0, BASE),
    ]
    heads = ("plain", "bsm", "light")
    _, _, *lines = format_table(runs, heads=heads).splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| plain", "| bsm", "| plain, refined"]
    assert lines[0].startswith("| plain | 2 | 60.0 +- 14.1 |")
    assert "+-" not in lines[1]
    assert "nan" not in "".join(lines)
    _, _, *lines = format_gains(runs, heads=heads, reference="plain").splitlines()
    assert lines[0].startswith("| bsm | 1 | +10.00 |  | 0.00 |")
    assert len(lines) == 2


def test_the_plot_is_written(tmp_path: Path):
    runs = [make_run("plain", 0, BASE), make_run("bsm", 0, BASE)]
    draw_plot(runs, tmp_path / "heads.png", heads=("plain", "bsm"), title="two heads")
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")
