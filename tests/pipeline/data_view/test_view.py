"""The page of a data set shows the chosen objects, and the targets that training makes of them."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from bsm.configs.semantic import DeepLabConfig
from bsm.field import boxes_to_frames, field_from_mask
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CocoIngest
from pipeline.data.stream import local_batches
from pipeline.data_view.objects import TARGET_COLORS
from pipeline.data_view.options import ViewOptions
from pipeline.data_view.samples import _paint_field, view_samples
from pipeline.data_view.view import view_data
from pipeline.errors import RecipeError
from pipeline.recipe import DataConfig, OptimConfig, Recipe, RobustConfig
from pipeline.training.color_jitter import jitter_colors
from tests.pipeline.data.tiny_maps import write_map_shards

SIDE_PX = 160
SQUARES = {
    "small one": [(10, 10, 20)],
    "big 'one'": [(20, 20, 110)],
    "both": [(5, 5, 12), (40, 40, 100)],
}
"""Left, top and side of the squares in each photo, by the name of their category."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Return shards of a photo for each category, with squares."""
    folder = tmp_path_factory.mktemp("view")
    (folder / "coco" / "train").mkdir(parents=True)
    (folder / "coco" / "annotations").mkdir()
    images, annotations = [], []
    for number, squares in enumerate(SQUARES.values(), start=1):
        file = f"{number}.png"
        Image.new("RGB", (SIDE_PX, SIDE_PX), (90, 90, 90)).save(folder / "coco" / "train" / file)
        images.append({"id": number, "file_name": file, "height": SIDE_PX, "width": SIDE_PX})
        for left, top, side in squares:
            right, bottom = left + side, top + side
            corners = [left, top, right, top, right, bottom, left, bottom]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": number}
                | {"segmentation": [corners], "bbox": [left, top, side, side]}
                | {"area": side**2, "iscrowd": 0}
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(SQUARES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco" / "annotations" / "instances_train.json").write_text(json.dumps(content))
    out = str(folder / "shards")
    ingest_dataset(CocoIngest(root=str(folder / "coco"), split="train", out=out, workers=0))
    return folder / "shards"


def view(shards: Path, tmp_path: Path, **options) -> tuple[str, dict]:
    result = view_data(str(shards), ViewOptions(**options), out=str(tmp_path / "data.html"))
    return Path(result["out"]).read_text(), result


def read_strips(page: str) -> list[np.ndarray]:
    """Read the pictures of the section with the targets, as arrays."""
    text = page.partition('id="targets"')[2]
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    ]


def count_colored(strip: np.ndarray, panel: int) -> int:
    """Count the colored pixels of a panel: the photo is gray."""
    pixels = strip[:, panel * 206 : panel * 206 + 200].astype(int)
    return int((pixels.max(axis=2) - pixels.min(axis=2) > 40).sum())


def test_all_objects_are_shown_with_their_targets(shards, tmp_path):
    page, result = view(shards, tmp_path)
    assert (result["photos"], result["objects"]) == (3, 4)
    strips = read_strips(page)
    assert len(strips) == 4
    for strip in strips:
        assert count_colored(strip, 0) == 0
        # In its own box a square is the whole mask.
        assert count_colored(strip, 1) == 200 * 200


def test_a_larger_kernel_makes_wider_bands(shards, tmp_path):
    colored = {}
    for kernel_size in (3, 5, 9):
        page, _ = view(shards, tmp_path, kernel_size=kernel_size, category=("big 'one'",))
        (strip,) = read_strips(page)
        colored[kernel_size] = count_colored(strip, list(TARGET_COLORS).index("expansion") + 1)
    # One cell of 28 on each side for each step of the kernel.
    expected = {k: 200 * 200 * (1 - ((28 - (k - 1)) / 28) ** 2) for k in colored}
    for kernel_size, count in colored.items():
        assert count == pytest.approx(expected[kernel_size], rel=0.1), kernel_size


def test_categories_and_sizes_are_chosen(shards, tmp_path):
    page, result = view(shards, tmp_path, category=("both",), size=("small",))
    assert (result["photos"], result["objects"]) == (1, 1)
    assert "both, small, 3.png" in page
    assert "both, large" not in page


@pytest.mark.parametrize("source", ["field", "roi"])
def test_both_sources_of_targets_are_shown(shards, tmp_path, source):
    page, _ = view(shards, tmp_path, source=source)
    assert f"from source {source}" in page
    assert len(read_strips(page)) == 4


def test_nothing_to_show_is_an_error(shards, tmp_path):
    with pytest.raises(RecipeError, match=r"has no 'bth', perhaps you meant both\. It has: small"):
        view(shards, tmp_path, category=("bth",))
    with pytest.raises(RecipeError, match=r"no photo of .* has such objects"):
        view(shards, tmp_path, category=("small one",), size=("large",))
    with pytest.raises(RecipeError, match="kernel_size: must be odd, got 4"):
        ViewOptions(kernel_size=4)


def test_label_maps_are_shown_with_their_bands(tmp_path):
    page, result = view(write_map_shards(tmp_path, images=3), tmp_path, photos=2)
    assert result["photos"] == 2
    assert page.count("data:image/jpeg") == 2
    assert "with a kernel of 15 pixels" in page
    page, _ = view(tmp_path / "shards" / "train", tmp_path, category=("tree",), kernel_size=5)
    assert "with a kernel of 5 pixels" in page


def test_samples_are_shown_as_a_recipe_trains_them(shards, tmp_path):
    data = DataConfig(
        root=str(shards.parent),
        train_split=shards.name,
        scale_jitter=(1.0, 1.0),
        crop_px=SIDE_PX,
        copy_paste=1.0,
        flip_probability=0.0,
        robust=RobustConfig(cutout=1.0),
    )
    recipe = Recipe(name="squares", data=data, optim=OptimConfig(global_batch=2))
    result = view_samples(
        recipe,
        shards="",
        samples=12,
        first_step=3,
        on_device=jitter_colors,
        out=str(tmp_path / "samples.html"),
    )
    page = Path(result["out"]).read_text()
    steps = list(
        local_batches(
            str(shards), data, seed=0, global_batch=2, images_per_microbatch=2,
            first_step=3, stop_step=9,
        )
    )  # fmt: skip
    batches = [step.microbatches[0] for step in steps]
    assert result["objects"] == sum(int(batch.targets.valid.sum()) for batch in batches)
    assert result["dropped"] == sum(int(batch.dropped.sum()) for batch in batches) > 0
    assert page.count("data:image/jpeg") == result["samples"] == 12
    assert f"step 8, lane 1, image {int(batches[-1].image_id[1])}, 160 x 160" in page
    with pytest.raises(RecipeError, match="trains on label maps"):
        view_samples(
            replace(recipe, model=DeepLabConfig(num_classes=2)),
            shards=str(shards), samples=1, first_step=0, on_device=jitter_colors, out="",
        )  # fmt: skip


def test_the_inside_of_a_field_is_painted_over_its_frame():
    disk = cv2.circle(np.zeros((60, 90), np.uint8), (30, 25), 14, 1, -1)
    disk[25:, 30:] = 0
    box = torch.tensor([16.0, 11.0, 45.0, 40.0])
    field = field_from_mask(torch.from_numpy(disk), box, side=112).numpy()
    x0, y0, x1, y1 = boxes_to_frames(box).tolist()
    painted = _paint_field(field, [x0, y0, x1, y1], (60, 90))
    assert (painted != disk.astype(bool)).mean() < 0.003
    mirrored = _paint_field(field, [90 - x0, y0, 90 - x1, y1], (60, 90))
    np.testing.assert_array_equal(mirrored, painted[:, ::-1])


def test_readers_filter_the_page(shards, tmp_path, chromium):
    view(shards, tmp_path)
    shown = chromium.new_page()
    shown.goto((tmp_path / "data.html").as_uri())
    targets = shown.locator("section", has=shown.locator("#targets"))
    figures = targets.locator("figure:visible")
    assert figures.count() == 4
    category, size = targets.locator("select").all()
    category.select_option("both")
    assert figures.count() == 2
    size.select_option("small")
    assert figures.count() == 1
    category.select_option("big 'one'")
    assert figures.count() == 0
    size.select_option("all")
    assert figures.count() == 1
    # Each section has filters of its own.
    assert shown.locator("figure:visible").count() == 3 + 1
    shown.close()
