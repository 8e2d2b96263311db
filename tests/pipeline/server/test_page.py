"""The page in a real browser: photos in, masks out, and nothing from any other server."""

import io
import json
import re
import socket
import threading
import zipfile
from contextlib import contextmanager
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import uvicorn
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.server.app import build_app
from pipeline.server.live_model import LiveModel
from tests.pipeline.refine.drawn_photos import to_rle, to_square
from tests.pipeline.server.direct_backend import DirectBackend
from tests.pipeline.server.other_models import make_refiner, make_semantic_models

BEARER = "a token that is long enough"
PHOTO = np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8)


@contextmanager
def run(backend):
    """Serve an application from a thread of this process; yield its address."""
    server = uvicorn.Server(uvicorn.Config(build_app(backend), log_level="warning"))
    # The socket listens before the server does, so a browser that is quicker waits for it.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def site(registered_model, tmp_path_factory):
    uri = registered_model.handle.tracking_uri
    names = ("models:/tiny@champion", "models:/tiny/1")
    models = [LiveModel(name, registry=uri, on_swap=lambda _: None) for name in names]
    folder = tmp_path_factory.mktemp("photos")
    for name in ("one", "two"):
        cv2.imwrite(str(folder / f"{name}.png"), PHOTO[..., ::-1])
    (folder / "broken.png").write_bytes((folder / "one.png").read_bytes()[:900])
    with run(DirectBackend(*models)) as address:
        yield SimpleNamespace(address=address, folder=folder, models=models)


@contextmanager
def open_page(chromium, site, **options):
    context = chromium.new_context(**options)
    shown = context.new_page()
    complaints, requests = [], []
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto(site.address)
    yield shown, complaints, requests
    context.close()


def add_photo(shown, site, *names):
    shown.set_input_files("#files", [str(site.folder / name) for name in names])
    shown.get_by_text(re.compile(r"objects? with a score")).wait_for()


def set_score(shown, value):
    shown.locator("#score").fill(str(value))


def read_canvas(shown) -> np.ndarray:
    shown.wait_for_timeout(60)  # a frame
    return np.asarray(Image.open(io.BytesIO(shown.locator("#canvas").screenshot())).convert("RGB"))


def test_the_threshold_acts_at_once_and_files_hold_what_is_shown(chromium, site):
    expected = site.models[0].current.predictor.predict_photo(PHOTO)
    scores = [row["score"] for row in expected]
    with open_page(chromium, site) as (shown, complaints, requests):
        add_photo(shown, site, "one.png")
        sent = len(requests)
        objects = shown.locator("#objects button")
        set_score(shown, 0)
        assert objects.count() == len(expected)
        all_drawn = read_canvas(shown)
        limit = round(scores[1], 2)
        set_score(shown, limit)
        kept = [row for row in expected if row["score"] >= limit]
        assert 0 < objects.count() == len(kept) < len(expected)
        assert (read_canvas(shown) != all_drawn).any()
        assert len(requests) == sent, "the threshold asked the server again"

        with shown.expect_download() as saved:
            shown.click("#save-json")
        content = json.loads(saved.value.path().read_text())
        assert [each["segmentation"] for each in content["annotations"]] == [r["rle"] for r in kept]
        assert {each["id"] for each in content["categories"]} == {7, 8, 9}
        areas = [int(mask_api.area(row["rle"])) for row in kept]
        assert [each["area"] for each in content["annotations"]] == areas
        with shown.expect_download() as saved:
            shown.click("#save-masks")
        assert saved.value.suggested_filename == "one-masks.zip"
        with zipfile.ZipFile(saved.value.path()) as archive:
            assert archive.testzip() is None
            for name, row in zip(archive.namelist(), kept, strict=True):
                mask = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L"))
                np.testing.assert_array_equal(mask > 0, mask_api.decode(row["rle"]) > 0)
        assert complaints == []


def test_two_versions_are_compared_and_everything_has_a_key(chromium, site):
    with open_page(chromium, site) as (shown, complaints, requests):
        add_photo(shown, site, "one.png", "two.png")
        assert shown.locator("#photos button").count() == 2
        set_score(shown, 0)
        whole = read_canvas(shown)
        shown.locator("#compare-on").focus()
        shown.keyboard.press("Space")
        shown.get_by_text(re.compile(r"Objects left: (\d+) of \1, right: \1 of \1")).wait_for()
        divided = read_canvas(shown)
        assert (divided != whole).any()
        shown.locator("#split").focus()
        shown.keyboard.press("ArrowLeft")
        assert (read_canvas(shown) != divided).any()
        shown.locator("#canvas").focus()
        before = read_canvas(shown)
        for key in ("n", "b", "ArrowLeft", "-", "0", "p"):
            shown.keyboard.press(key)
            after = read_canvas(shown)
            assert (after != before).any(), key
            before = after
        assert shown.locator("#objects [aria-pressed=true]").count() == 1
        label = shown.locator("#canvas").get_attribute("aria-label")
        assert label.startswith("one.png: ")
        assert complaints == []
        assert {
            url.split("/")[2] for url in requests if not url.startswith(("blob:", "data:"))
        } == {site.address.removeprefix("http://")}


def test_a_photo_that_is_quicker_than_the_server_waits_for_it(chromium, site):
    held = []
    with open_page(chromium, site) as (shown, complaints, _):
        shown.route("**/models", lambda route: held.append(route))  # noqa: PLW0108  Playwright takes no builtin
        shown.reload()
        shown.set_input_files("#files", str(site.folder / "one.png"))
        shown.get_by_text("Waiting for the server").wait_for()
        held[0].continue_()
        shown.get_by_text(re.compile(r"objects? with a score")).wait_for()
        assert complaints == []


def test_a_bad_photo_is_explained(chromium, site):
    with open_page(chromium, site) as (shown, _, _):
        shown.set_input_files("#files", str(site.folder / "broken.png"))
        shown.get_by_text("broken.png: photo: ").wait_for()
        assert "cut off after 900 bytes" in shown.text_content("#status")
        assert "error" in shown.locator("#status").get_attribute("class")


@pytest.mark.parametrize(("scheme", "width_px"), [("dark", 1250), ("light", 390)])
def test_the_page_fits_and_follows_the_scheme(chromium, site, scheme, width_px):
    options = {"color_scheme": scheme, "viewport": {"width": width_px, "height": 800}}
    with open_page(chromium, site, **options) as (shown, complaints, _):
        add_photo(shown, site, "one.png")
        for path in ("/", "/docs"):
            shown.goto(site.address + path)
            shown.get_by_text(re.compile("models:/tiny|GET /ready")).first.wait_for()
            assert shown.evaluate("document.documentElement.scrollWidth") <= width_px
            ink, paper = (
                sum(map(int, re.findall(r"\d+", color)[:3]))
                for color in shown.evaluate(
                    "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
                )
            )
            assert (ink > paper) == (scheme == "dark")
        assert complaints == []


def test_a_token_is_asked_for(chromium, site):
    with run(DirectBackend(*site.models, token=BEARER)) as address:
        guarded = SimpleNamespace(address=address, folder=site.folder)
        with open_page(chromium, guarded) as (shown, _, _):
            shown.get_by_label("This server asks for a token").fill(BEARER)
            shown.keyboard.press("Enter")
            shown.get_by_text("models:/tiny/1 and models:/tiny/1").wait_for()
            add_photo(shown, guarded, "one.png")


def test_classes_have_a_legend_and_the_label_map_is_saved(chromium, site):
    models = make_semantic_models()
    predictor = models[0].current.predictor
    (row,) = predictor.predict_photo(PHOTO)
    with run(DirectBackend(*models)) as address:
        served = SimpleNamespace(address=address, folder=site.folder)
        with open_page(chromium, served) as (shown, complaints, requests):
            shown.set_input_files("#files", str(site.folder / "one.png"))
            shown.get_by_text(re.compile("classes, most of it")).wait_for()
            names = shown.locator("#objects button span").all_text_contents()
            assert names == row["category_names"]
            sent, whole = len(requests), read_canvas(shown)
            shown.get_by_label(f"show {names[0]}").uncheck()
            hidden = read_canvas(shown)
            assert (hidden != whole).any()
            shown.locator("#opacity").fill("1")
            assert (read_canvas(shown) != hidden).any()
            assert len(requests) == sent, "a control asked the server again"
            with shown.expect_download() as saved:
                shown.click("#save-labels")
            assert saved.value.suggested_filename == "one-labels.png"
            assert saved.value.path().read_bytes() == row["label_map"]
            plain = read_canvas(shown)
            # Its outline appears.
            shown.locator("#canvas").focus()
            shown.keyboard.press("n")
            shown.keyboard.press("0")
            assert (read_canvas(shown) != plain).any()
            shown.locator("#compare-on").check()
            shown.get_by_text(re.compile(r"Classes left: \d, right: [1-9]")).wait_for()
            assert complaints == []


def test_masks_are_refined_and_written_back_into_their_file(chromium, site, tmp_path):
    refiner = make_refiner()
    mask = np.zeros(PHOTO.shape[:2], np.uint8)
    cv2.circle(mask, (40, 30), 14, 1, -1)
    given = [{"image_id": 1, "category_id": 5, "score": 0.5, "bbox": [26, 16, 29, 29]}] * 2
    given = [
        row | {"segmentation": segmentation}
        for row, segmentation in zip(given, ([to_square(mask)], to_rle(mask)), strict=True)
    ]
    (tmp_path / "results.json").write_text(json.dumps(given))
    cv2.imwrite(str(tmp_path / "mask.png"), 255 * mask)
    (tmp_path / "other.json").write_text('{"annotations": 7}')
    masks = [each["segmentation"] for each in given]
    expected = refiner.current.predictor.refine_masks(PHOTO, masks, max_change=1)
    with run(DirectBackend(refiner)) as address:
        served = SimpleNamespace(address=address, folder=site.folder)
        with open_page(chromium, served) as (shown, complaints, requests):
            shown.set_input_files("#files", str(site.folder / "one.png"))
            shown.get_by_text("one.png: add its masks").wait_for()
            shown.set_input_files("#mask-files", str(tmp_path / "other.json"))
            shown.get_by_text("other.json: it is neither a list of rows").wait_for()
            shown.set_input_files("#mask-files", str(tmp_path / "results.json"))
            shown.get_by_text("one.png: 2 masks").wait_for()
            shown.locator("#change").fill("1")
            sent, divided = len(requests), read_canvas(shown)
            shown.locator("#split").fill("0")
            assert (read_canvas(shown) != divided).any()
            with shown.expect_download() as saved:
                shown.click("#save-json")
            assert saved.value.suggested_filename == "results-refined.json"
            assert json.loads(saved.value.path().read_text()) == [
                row | {"segmentation": each["rle"]}
                for row, each in zip(given, expected, strict=True)
            ]
            shown.locator("#change").fill("0")
            shown.get_by_text("Masks: 2, kept as given: 2").wait_for()
            with shown.expect_download() as saved:
                shown.click("#save-json")
            assert json.loads(saved.value.path().read_text()) == given
            assert len(requests) == sent, "a control asked the server again"
            shown.set_input_files("#mask-files", str(tmp_path / "mask.png"))
            shown.get_by_text("one.png: 3 masks").wait_for()
            assert complaints == []
