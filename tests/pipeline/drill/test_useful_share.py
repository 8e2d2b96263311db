"""The formula of the useful share is what random failures give."""

import random

import pytest

from pipeline.drill.useful_share import compute_useful_share


def simulate(*, every_s, write_s, restart_s, mean_s, parts=20_000):
    """Do parts of work, each again from its start after a failure, as a run does."""
    draw = random.Random(0)  # noqa: S311  no secret
    total_s, left_s = 0.0, draw.expovariate(1 / mean_s)
    for _ in range(parts):
        need_s = every_s + write_s
        while left_s < need_s:
            total_s += left_s
            left_s = draw.expovariate(1 / mean_s)
            need_s = restart_s + every_s + write_s
        total_s += need_s
        left_s -= need_s
    return parts * every_s / total_s


@pytest.mark.parametrize(
    ("every_s", "write_s", "restart_s", "mean_s"),
    [(600, 5, 60, 3600), (60, 0, 30, 100), (1800, 60, 300, 900)],
)
def test_the_formula_is_what_random_failures_give(every_s, write_s, restart_s, mean_s):
    measured = simulate(every_s=every_s, write_s=write_s, restart_s=restart_s, mean_s=mean_s)
    computed = compute_useful_share(
        checkpoint_every_s=every_s,
        checkpoint_s=write_s,
        restart_s=restart_s,
        failure_every_s=mean_s,
    )
    assert computed == pytest.approx(measured, rel=0.03)


def test_without_failures_only_checkpoints_take_time():
    share = compute_useful_share(
        checkpoint_every_s=95, checkpoint_s=5, restart_s=60, failure_every_s=1e9
    )
    assert share == pytest.approx(0.95, abs=1e-3)
