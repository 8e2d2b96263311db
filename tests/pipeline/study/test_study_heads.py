"""The table of a study: what is averaged, what is compared seed by seed, what belongs to it."""

import json
from dataclasses import replace
from pathlib import Path

from jobs.study_heads import RECIPE
from pipeline.recipe import fingerprint
from pipeline.study.heads import Trial, draw_rows, format_rows, read_trials, summarize

_NAMES = ("mask_iou", "boundary_iou")


def _trial(head: str, seed: int, value: float) -> Trial:
    names = [f"{a}{b}" for a in _NAMES for b in ("", "_over_50", "_over_75", "_large")]
    return Trial(head=head, seed=seed, metrics=dict.fromkeys(names, value), train_s=1.0)


def _rows() -> tuple[list[Trial], dict[str, str]]:
    trials = [
        _trial("plain", 0, 0.50),
        _trial("plain", 1, 0.60),
        _trial("bsm", 0, 0.53),
        _trial("bsm", 1, 0.61),
        _trial("light", 1, 0.62),
    ]
    rows = summarize(trials, heads=("plain", "bsm", "light", "bmask"), reference="plain")
    text = format_rows(rows, reference="plain")
    return trials, {line.split("|")[1].strip(): line for line in text.splitlines()}


def test_heads_are_averaged_and_compared_seed_by_seed() -> None:
    _, lines = _rows()
    assert "| 55.0 +- 7.1 |" in lines["plain"]
    assert "| 57.0 +- 5.7 |" in lines["bsm"]
    # 0.03 and 0.01: what a seed brings to both heads is not in the spread.
    assert "| +2.00 +- 1.41 |" in lines["bsm"]


def test_a_single_seed_has_no_spread() -> None:
    _, lines = _rows()
    assert "nan" not in lines["light"]
    assert "| 62.0 |" in lines["light"]
    assert "| +2.00 |" in lines["light"], "compared with the same seed, not with the mean"
    assert "bmask" not in lines, "a head that was not trained has no row"


def test_the_picture_is_written(tmp_path: Path) -> None:
    trials, _ = _rows()
    rows = summarize(trials, heads=("plain", "bsm"), reference="plain")
    draw_rows(rows, trials, tmp_path / "heads.png", title="two heads")
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_another_recipe_are_not_of_the_study(tmp_path: Path) -> None:
    named = replace(RECIPE, name="plain-0", seed=0, storage=str(tmp_path))
    longer = replace(named, optim=replace(named.optim, steps=named.optim.steps + 1))
    for seed, recipe in ((0, fingerprint(named)), (1, fingerprint(longer))):
        place = tmp_path / f"plain-{seed}" / "result.json"
        place.parent.mkdir()
        found = {"head": "plain", "seed": seed, "recipe": recipe, "metrics": {}, "train_s": 1.0}
        place.write_text(json.dumps(found))
    trials = read_trials({"plain": RECIPE}, out=str(tmp_path))
    assert [each.seed for each in trials] == [0]
