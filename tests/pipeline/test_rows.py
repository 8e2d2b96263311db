"""Rows of a job: how they are listed, and how a run compares with the paper."""

from dataclasses import replace

from pipeline.recipe import Recipe
from pipeline.rows import Paper, Row, compare_with_paper, format_rows

RECIPE = Recipe(name="job")
ROW = Row(
    RECIPE,
    "BSM",
    (
        Paper(table="2", split="val2017", mask_ap=36.9, boundary_ap=23.6),
        Paper(table="3", split="test-dev2017", mask_ap=37.0),
    ),
)


def test_each_number_that_run_and_paper_both_have_is_compared():
    metrics = {"mask_ap": 0.3794, "box_ap": 0.4, "boundary_ap": None, "images": 5000}
    assert compare_with_paper(ROW, RECIPE, metrics) == [
        "mask AP 37.9 on val2017, the paper has 36.9 (Table 2, val2017)",
        "mask AP 37.9 on val2017, the paper has 37.0 (Table 3, test-dev2017)",
    ]
    assert compare_with_paper(ROW, RECIPE, {"miou": 0.7}) == []
    assert compare_with_paper(Row(RECIPE), RECIPE, metrics) == []


def test_a_comparison_names_the_overrides_that_change_the_numbers():
    run = replace(
        RECIPE,
        name="short",
        storage="/elsewhere",
        data=replace(RECIPE.data, root="/shards", flip_probability=0.0),
        optim=replace(RECIPE.optim, steps=10),
    )
    lines = compare_with_paper(ROW, run, {"boundary_ap": 0.1})
    assert lines == [
        "boundary AP 10.0 on val2017, the paper has 23.6 (Table 2, val2017)",
        "This run differs from the row: data.flip_probability, optim.steps changed.",
    ]
    assert compare_with_paper(ROW, run, {}) == []


def test_a_run_on_other_data_is_not_compared():
    metrics = {"mask_ap": 0.3794}
    photos = replace(RECIPE, data=replace(RECIPE.data, val_split="val"))
    fewer = replace(RECIPE, model=replace(RECIPE.model, num_classes=3))
    for run in (photos, fewer):
        assert compare_with_paper(ROW, run, metrics) == []
        assert ROW.on_data_of(run).papers == ()
    assert ROW.on_data_of(RECIPE) == ROW


def test_rows_are_listed_one_a_line_with_the_papers_numbers():
    header, *lines = format_rows({"squeeze": ROW, "guided": Row(RECIPE, "ours")})
    assert header.split() == ["row", "model", "the", "paper", "reports"]
    assert lines[0].startswith("squeeze (default)  BSM    mask AP 36.9, boundary AP 23.6 (Table 2,")
    assert lines[1].split() == ["guided", "ours", "-"]
