"""Tiles and views of a photo give the objects of the whole photo."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api

from pipeline.data.manifest import Category
from pipeline.errors import RecipeError
from pipeline.evaluation.label_planes import describe_labels
from pipeline.evaluation.merged_views import merge_objects
from pipeline.evaluation.objects import Objects, to_rows
from pipeline.prediction.augmented import predict_views
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.tiles import make_tiles, predict_tiles

CATEGORIES = (
    Category(category_id=3, category_index=0, name="dark"),
    Category(category_id=8, category_index=1, name="bright"),
)


def find_bright(pixels):
    """Find connected bright regions: a segmenter that sees only what a tile shows."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((pixels[..., 0] > 127).astype("u1"))
    rows = []
    for index in range(1, count):
        left, top, width, height, area = stats[index].tolist()
        rle = mask_api.encode(np.asfortranarray(labels == index, dtype=np.uint8))
        rows.append(
            {
                "category_name": "bright",
                "category_index": 1,
                "score": min(area / 1e5, 1.0),
                "box_xyxy": [left, top, left + width, top + height],
                "rle": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    return rows


def label_bright(pixels):
    return [describe_labels((pixels[..., 0] > 127).astype("u1"), CATEGORIES)._asdict()]


@pytest.fixture(scope="module")
def photo():
    pixels = np.zeros((500, 700, 3), np.uint8)
    cv2.ellipse(pixels, (340, 250), (300, 60), 20, 0, 360, (255,) * 3, -1)  # over all seams
    cv2.circle(pixels, (60, 440), 20, (255,) * 3, -1)
    cv2.circle(pixels, (640, 60), 30, (255,) * 3, -1)
    cv2.rectangle(pixels, (0, 0), (15, 15), (255,) * 3, -1)
    return pixels


def test_objects_across_seams_are_whole_again(photo):
    whole = find_bright(photo)
    tiled = predict_tiles(
        find_bright, photo, categories=CATEGORIES, is_semantic=False, side=256, overlap=0.25
    )
    assert len(tiled) == len(whole) == 4

    def key(row):
        return row["box_xyxy"], row["rle"]["size"], row["rle"]["counts"]

    assert sorted(map(key, tiled)) == sorted(map(key, whole))


def test_tiles_own_each_pixel_once(photo):
    size_hw = photo.shape[:2]
    counts = np.zeros(size_hw, int)
    for tile in make_tiles(size_hw, side=256, overlap=0.25):
        counts[tile.own_rows, tile.own_columns] += 1
        assert tile.rows.start <= tile.own_rows.start < tile.own_rows.stop <= tile.rows.stop
    assert (counts == 1).all()
    tiled = predict_tiles(
        label_bright, photo, categories=CATEGORIES, is_semantic=True, side=256, overlap=0.25
    )
    assert tiled[0]["label_map"] == label_bright(photo)[0]["label_map"]
    assert tiled[0]["category_ids"] == [3, 8]


def objects(*boxes, scores, side=28):
    """Objects whose masks fill the left half of their boxes."""
    probs = np.zeros((len(boxes), side, side), np.float32)
    probs[..., : side // 2] = 1
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.ones(len(boxes), np.int64),
        probs,
    )


def test_views_agree_on_box_mask_and_score():
    first = objects((10, 10, 50, 50), (100, 10, 140, 50), scores=(0.9, 0.6))
    second = objects((12, 10, 52, 50), scores=(0.3,))
    merged = merge_objects([first, second])
    np.testing.assert_allclose(merged.scores, [0.6, 0.3])
    np.testing.assert_allclose(merged.boxes_xyxy[0], [10.5, 10, 50.5, 50], atol=1e-4)
    (row, _) = to_rows(merged, CATEGORIES, size_hw=(60, 200))
    columns = np.flatnonzero(mask_api.decode(row["rle"]).any(axis=0))
    # The left half of 10.5 to 50.5: the view with the higher score counts three times as much.
    assert columns.min() in (10, 11)
    assert columns.max() in (29, 30)
    assert len(merge_objects([objects(scores=()), objects(scores=())]).scores) == 0


class Mirrored:
    """A model that is wrong about the right half of a photo, whatever it shows."""

    task = "semantic"
    categories = CATEGORIES

    def find_probs(self, pixels, *, scale):
        bright = (pixels[..., 0] > 127).astype(np.float32)
        bright[:, pixels.shape[1] // 2 :] = 0.45
        return np.stack([1 - bright, bright])


def test_flipped_views_are_flipped_back():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 6:] = 255
    options = {"score_threshold": 0.0, "scales": (1.0,)}
    (alone,) = predict_views(Mirrored(), pixels, flip=False, **options)
    (both,) = predict_views(Mirrored(), pixels, flip=True, **options)
    assert alone["category_ids"] == [3]
    assert dict(zip(both["category_ids"], both["pixel_shares"], strict=True)) == {3: 0.75, 8: 0.25}


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(RecipeError) as raised:
        PredictOptions(tile=8, tile_overlap=0.9, scales=(0.0,)).check()
    for flag in ("--tile 8", "--tile-overlap 0.9", "--scales 0"):
        assert flag in str(raised.value)
