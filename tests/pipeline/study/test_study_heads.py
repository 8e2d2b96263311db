import json
from dataclasses import replace
from pathlib import Path

from jobs.study_heads import RECIPE
from pipeline.recipe import fingerprint
from pipeline.study.heads import (
    HeadRun,
    draw_summaries,
    format_summaries,
    read_runs,
    summarize,
)

_NAMES = ("mask_iou", "boundary_iou")


def _make_run(head: str, seed: int, value: float) -> HeadRun:
    names = [f"{a}{b}" for a in _NAMES for b in ("", "_over_50", "_over_75", "_large")]
    return HeadRun(head=head, seed=seed, metrics=dict.fromkeys(names, value), train_s=1.0)


def _summarize_runs() -> tuple[list[HeadRun], dict[str, str]]:
    runs = [
        _make_run("plain", 0, 0.50),
        _make_run("plain", 1, 0.60),
        _make_run("bsm", 0, 0.53),
        _make_run("bsm", 1, 0.61),
        _make_run("light", 1, 0.62),
    ]
    summaries = summarize(runs, heads=("plain", "bsm", "light", "bmask"), reference="plain")
    text = format_summaries(summaries, reference="plain")
    return runs, {line.split("|")[1].strip(): line for line in text.splitlines()}


def test_summaries_average_and_compare_heads_seed_by_seed() -> None:
    _, lines = _summarize_runs()
    assert "| 55.0 +- 7.1 |" in lines["plain"]
    assert "| 57.0 +- 5.7 |" in lines["bsm"]
    # The spread of 0.03 and 0.01; the effect of the seed on both heads cancels.
    assert "| +2.00 +- 1.41 |" in lines["bsm"]


def test_a_single_seed_has_no_spread() -> None:
    _, lines = _summarize_runs()
    assert "nan" not in lines["light"]
    assert "| 62.0 |" in lines["light"]
    assert "| +2.00 |" in lines["light"], "compared with the same seed, not with the mean"
    assert "bmask" not in lines, "a head that was not trained has no row"


def test_the_plot_is_written(tmp_path: Path) -> None:
    runs, _ = _summarize_runs()
    summaries = summarize(runs, heads=("plain", "bsm"), reference="plain")
    draw_summaries(summaries, runs, tmp_path / "heads.png", title="two heads")
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_another_recipe_are_ignored(tmp_path: Path) -> None:
    named = replace(RECIPE, name="plain-0", seed=0, storage=str(tmp_path))
    longer = replace(named, optim=replace(named.optim, steps=named.optim.steps + 1))
    for seed, recipe in ((0, fingerprint(named)), (1, fingerprint(longer))):
        path = tmp_path / f"plain-{seed}" / "result.json"
        path.parent.mkdir()
        record = {"head": "plain", "seed": seed, "recipe": recipe, "metrics": {}, "train_s": 1.0}
        path.write_text(json.dumps(record))
    runs = read_runs({"plain": RECIPE}, out=str(tmp_path))
    assert [each.seed for each in runs] == [0]
