import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.report.boundary_picture import (
    FALSE,
    MISSED,
    RIGHT,
    Panel,
    compare_outlines,
    draw_boundary_errors,
)
from pipeline.report.draw import (
    PALETTE,
    Instance,
    _Box,
    _place_label,
    decode_instance,
    draw_instances,
)


def square(x0, y0, x1, y1, size_hw=(64, 96)):
    mask = np.zeros(size_hw, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def colors(picture):
    return {tuple(color) for _, color in picture.getcolors(picture.width * picture.height)}


def test_draw_instances_enlarges_small_photos_and_colors_only_the_mask():
    photo = np.full((64, 96, 3), 200, np.uint8)
    rle = mask_api.encode(np.asfortranarray(square(40, 30, 60, 50).astype(np.uint8)))
    picture = draw_instances(
        photo, [decode_instance(rle, category_index=1, name="cup", score=0.876)]
    )
    assert picture.size == (576, 384)
    inside, outside = picture.getpixel((300, 240)), picture.getpixel((30, 300))
    assert outside == (200, 200, 200)
    expected = [0.58 * 200 + 0.42 * c for c in PALETTE[1]]
    np.testing.assert_allclose(inside, expected, atol=1)
    # The outline is drawn in the full color, on the mask's border.
    border = np.asarray(picture)[238:242, 236:246].reshape(-1, 3)
    assert any(tuple(pixel) == PALETTE[1] for pixel in border)


def test_draw_instances_keeps_large_photos_and_photos_without_instances():
    photo = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(draw_instances(photo, [])), photo)
    hidden = Instance(np.zeros((480, 640), dtype=bool), "nothing", PALETTE[0])
    np.testing.assert_array_equal(np.asarray(draw_instances(photo, [hidden])), photo)


def test_a_narrow_photo_is_not_enlarged_without_limit():
    strip = np.zeros((40, 8000, 3), np.uint8)
    mask = np.zeros((40, 8000), dtype=bool)
    mask[10:20, 100:300] = True
    picture = draw_instances(strip, [Instance(mask, "a long name of a category", PALETTE[0])])
    assert picture.size == (8192, 41)
    assert draw_instances(np.zeros((5, 9000, 3), np.uint8), []).size == (9000, 5)


def test_labels_stay_in_the_picture_and_do_not_overlap():
    rng = np.random.default_rng(0)
    taken = []
    for _ in range(60):
        x, y = (int(v) for v in rng.integers(-5, 390, 2))
        chip = _place_label(_Box(x, y, x + 30, y + 30), (70, 18), (400, 400), taken)
        if chip is None:
            continue
        assert 0 < chip.x0 < chip.x1 < 400
        assert 0 < chip.y0 < chip.y1 < 400
        assert sum(chip.overlap_px(other) for other in taken) <= 0.15 * 70 * 18
        taken.append(chip)
    assert 20 < len(taken) < 60, "in such a crowd, some labels are omitted, but not most"


def test_compare_outlines_finds_a_shifted_side():
    truth, found = square(20, 20, 40, 40), square(20, 20, 46, 40)
    errors = compare_outlines([truth], [found])
    assert errors.missed[25:35, 39].all()
    assert errors.false[25:35, 45].all()
    assert errors.right[25:35, 20].all()
    assert not (errors.right & errors.false).any()
    # One pixel off is within 0.8 % of the diagonal of 115 px, rounded.
    near = compare_outlines([truth], [square(20, 20, 41, 40)])
    assert not near.false.any()
    assert not near.missed.any()
    assert near.summary() == "right 100%  false 0%  missed 0%"


def test_compare_outlines_without_prediction_or_truth():
    mask = square(0, 0, 20, 20)
    assert compare_outlines([mask], []).summary() == "right 0%  false 0%  missed 100%"
    assert compare_outlines([], [mask]).summary() == "right 0%  false 100%  missed 0%"
    # The outline of an object at the image border is on the border.
    assert compare_outlines([mask], []).missed[0, :20].all()


def test_the_picture_has_a_row_for_each_image_of_any_size(tmp_path):
    small = np.full((64, 96, 3), 120, np.uint8)
    large = np.full((900, 600, 3), 120, np.uint8)
    truth = Instance(square(20, 20, 40, 40), "a", PALETTE[0])
    found = Instance(square(20, 20, 60, 40), "a 0.90", PALETTE[0])
    big = Instance(square(100, 100, 500, 800, (900, 600)), "b", PALETTE[1])
    panels = [
        Panel("small.png", small, [truth], [found]),
        Panel("large.png", large, [big], []),
        Panel("empty.png", small, [], []),
    ]
    path = tmp_path / "new" / "picture.png"
    picture = draw_boundary_errors(panels, path)
    with Image.open(path) as written:
        assert written.size == picture.size
    assert picture.width == 4 * 384 + 5 * 10
    assert picture.height > 2 * 256 + 576
    errors = picture.crop((3 * 384 + 40, 40, picture.width, picture.height - 50))
    assert {RIGHT, FALSE, MISSED} <= colors(errors)
    with pytest.raises(ValueError, match="at least one image"):
        draw_boundary_errors([], path)
