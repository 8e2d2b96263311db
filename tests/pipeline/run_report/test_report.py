"""The report of a run shows what the run has, says what it has not, and needs no other file."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CocoIngest
from pipeline.data.sources.shapes import write_shapes
from pipeline.errors import RecipeError
from pipeline.rows import Paper, Row
from pipeline.run_report.report import write_report
from pipeline.run_report.run_folder import save_row
from tests.pipeline.run_report.made_runs import make_instance_run, make_semantic_run
from tests.pipeline.training.tiny_run import tiny_recipe
from tests.pipeline.training.tiny_semantic_run import semantic_recipe
from tests.pipeline.training.tiny_semantic_run import write_shards as write_map_shards

HOSTILE = "<script>alert('$x^$')</script> & <img src=http://example.com/x>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def shards(folder) -> Path:
    """Return shapes of which one category has a name that no page should take for HTML."""
    write_shapes(folder / "coco", train_images=12, val_images=16)
    for split in ("train", "val"):
        file = folder / "coco" / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        content["categories"][0]["name"] = HOSTILE
        file.write_text(json.dumps(content))
        out = str(folder / "shards" / split)
        ingest_dataset(CocoIngest(root=str(folder / "coco"), split=split, out=out, workers=0))
    return folder / "shards"


@pytest.fixture(scope="module")
def run(shards, folder) -> Path:
    recipe = tiny_recipe(shards, folder / "runs", name="first", num_workers=0)
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, max_images=None))
    made = make_instance_run(recipe)
    declared = replace(recipe, optim=replace(recipe.optim, steps=90_000))
    paper = Paper(table="2", split="val2017", mask_ap=36.9, boundary_ap=23.6)
    save_row(str(made), Row(declared, "BSM", (paper,)))
    return made


@pytest.fixture(scope="module")
def page(run) -> str:
    return Path(write_report(str(run))).read_text()


class Parsed(HTMLParser):
    """Collects tags, references and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v]

    def handle_data(self, data):
        self.text += f"{data} "


def squeeze(text: str) -> str:
    return " ".join(text.split())


def test_the_page_needs_nothing_else(page):
    parsed = Parsed(page)
    assert parsed.references
    assert all(each.startswith(("#", "data:")) for each in parsed.references)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_names_from_data_sets_are_text(page):
    parsed = Parsed(page)
    assert parsed.tags.count("script") == 1
    assert "http://example.com/x" not in parsed.references
    # In a table, in the text of a chart and in a caption.
    assert parsed.text.count("<script>alert") >= 3


def test_every_part_of_the_run_is_shown(page):
    text = squeeze(Parsed(page).text)
    for title in (
        *("Result", "Training", "Size and category", "Objects", "Confusion of categories"),
        *("Calibration of scores", "Data", "Recipe", "Environment"),
    ):
        assert f'<h2 id="{title.lower().replace(" ", "-")}">{title}</h2>' in page
    assert "mask AP, paper (Table 2, val2017) 36.9" in text
    assert "optim.steps 90000 13" in text
    for curve in ("total loss", "mask", "learning rate", "throughput", "data wait"):
        assert f'aria-label="{curve} by step"' in page
    assert "dropped at ingest nothing nothing" in text
    assert "audit now ok ok" in text
    assert "torch" in text
    assert "--evaluation.every-checkpoint also gives" in text


def test_pictures_are_the_worst_the_median_and_the_best(page):
    ious = [float(iou) for iou in re.findall(r"<figcaption>.*boundary IoU ([\d.]+)", page)]
    assert len(ious) == 18
    assert ious[:6] == sorted(ious[:6])
    assert ious[12:] == sorted(ious[12:], reverse=True)
    assert ious[0] < ious[6] < ious[12] == 1.0
    assert page.count("data:image/jpeg") == 18


def test_units_are_on_every_axis(page):
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) >= 9
    for chart in charts:
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", chart)
        words = [text for text in texts if re.search("[a-z]", text)]
        assert len(words) >= 2, texts


def test_charts_have_no_color_of_their_own_for_text(page):
    assert "#010203" not in page
    assert "currentColor" in page


def test_another_run_is_beside_it_with_what_differs(run, shards, folder, monkeypatch):
    recipe = tiny_recipe(shards, folder / "runs", name="second", num_workers=0)
    recipe = replace(recipe, optim=replace(recipe.optim, lr_per_image=0.002))
    other = make_instance_run(recipe)
    monkeypatch.chdir(folder)
    uri = write_report(str(run), against=str(other), out="both.html")
    assert uri == str(folder / "both.html")
    assert not (folder / "SHA256SUMS").exists()
    text = squeeze(Parsed(Path(uri).read_text()).text)
    assert "first, against second" in text
    assert "optim.lr_per_image 0.002 0.001" in text
    assert "mask AP, difference +0.0" in text
    assert "category mask AP second difference boundary AP second difference" in text


def test_what_a_run_does_not_have_is_said(shards, folder):
    recipe = tiny_recipe(shards, folder / "other", name="bare", num_workers=0)
    bare = make_instance_run(recipe, tracked=False)
    (bare / "metrics.json").unlink()
    (bare / "detections.json").unlink()
    moved = replace(recipe, data=replace(recipe.data, train_split="gone"))
    recipe_file = bare / "recipe.json"
    from_recipe = json.loads(recipe_file.read_text())
    from_recipe["data"]["train_split"] = moved.data.train_split
    recipe_file.write_text(json.dumps(from_recipe))
    text = squeeze(Parsed(Path(write_report(str(bare))).read_text()).text)
    assert "There are no metrics: the run's folder has no metrics.json" in text
    assert "There are no curves: the run was not tracked in this store" in text
    assert "The predictions cannot be compared with the truth again" in text
    assert "gone cannot be read" in text
    assert "cannot be compared with its job's: the run was not started from a row" in text


def test_a_run_that_finds_nothing_shows_its_photos(shards, folder):
    recipe = tiny_recipe(shards, folder / "nothing", name="lost", num_workers=0)
    page = Path(write_report(str(make_instance_run(recipe, shifts_px=(64,))))).read_text()
    text = squeeze(Parsed(page).text)
    assert re.search(r" 0 of \d+ objects in .* were found", text)
    found = r"\d true objects?; (\d+ detections?, best score 0.95|nothing detected)"
    assert len(re.findall(found, text)) == 4
    assert page.count("data:image/jpeg") == 4


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match=r"has no recipe\.json, so it is not the folder of a run"):
        write_report(str(tmp_path))
    (tmp_path / "recipe.json").write_text('{"x": 1')
    with pytest.raises(RecipeError, match=rf"^{tmp_path}/recipe\.json: .*not valid JSON"):
        write_report(str(tmp_path))


def test_label_maps_have_classes_confusion_and_worst_frames(tmp_path):
    recipe = semantic_recipe(
        write_map_shards(tmp_path), tmp_path / "runs", name="maps", num_workers=0
    )
    made = make_semantic_run(recipe)
    page = Path(write_report(str(made))).read_text()
    text = squeeze(Parsed(page).text)
    for title in ("Classes", "Confusion of classes", "Worst frames"):
        assert f">{title}</h2>" in page
    assert "mIoU 60.0" in text
    ious = [float(iou) for iou in re.findall(r"<figcaption>.*mean IoU ([\d.]+)", page)]
    assert len(ious) == 3
    assert ious == sorted(ious)
    # The first map was not moved.
    assert ious[-1] == 1.0
    assert "label maps cannot be compared" not in text


@pytest.mark.parametrize(("scheme", "width_px"), [("light", 1250), ("dark", 1250), ("light", 390)])
def test_the_page_opens_from_disk_without_a_network(page, run, chromium, scheme, width_px):
    context = chromium.new_context(
        color_scheme=scheme, viewport={"width": width_px, "height": 800}, offline=True
    )
    shown = context.new_page()
    complaints, requests = [], []
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto((run / "report.html").as_uri())
    assert "first" in shown.title()
    assert shown.evaluate("document.documentElement.scrollWidth") <= width_px
    # Text and axes of the charts have the color of the page, which is light on dark or dark on it.
    ink, chart_ink, paper = shown.evaluate(
        """() => {
            const page = getComputedStyle(document.body);
            const text = getComputedStyle(document.querySelector("svg text"));
            return [page.color, text.fill, page.backgroundColor];
        }"""
    )
    assert ink == chart_ink
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper)]
    assert (brightness[0] > brightness[1]) == (scheme == "dark")
    shown.locator(".zoom").first.click()
    enlarged = shown.locator("dialog img")
    assert enlarged.is_visible()
    assert enlarged.get_attribute("src") == shown.locator(".zoom img").first.get_attribute("src")
    enlarged.click()
    assert not enlarged.is_visible()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == 1
    context.close()
