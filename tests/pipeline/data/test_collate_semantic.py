from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.data.augment import ResizeFlip, decode_row, resize_and_flip
from pipeline.data.augment_semantic import draw_crop, get_test_transform
from pipeline.data.batch import row_seeds
from pipeline.data.collate_semantic import (
    collate,
    collate_for_test,
    collate_images,
    decode_label,
    prepare_rows,
)
from pipeline.data.schema import PLANES
from pipeline.data.semantic_fields import decode_plane, find_nearest_classes
from pipeline.errors import DatasetError
from pipeline.recipe import ColorConfig, DataConfig
from tests.pipeline.data.street_samples import SIZE_HW, blocks
from tests.pipeline.data.tiny_maps import write_map_shards

DATA = DataConfig(crop_px=32, scale_range=(1.0, 1.0), flip_probability=0.0)
ANY = replace(DATA, scale_range=(0.5, 2.0), flip_probability=0.5)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    split = write_map_shards(tmp_path_factory.mktemp("maps"))
    return with_plan(pq.read_table(f"{split}/part-00000.parquet"))


def with_plan(table, *, epoch=0):
    table = table.append_column("epoch", pa.array([epoch] * len(table)))
    return table.append_column("lane", pa.array(range(len(table))))


def draw_crops(rows, data, *, seed=0):
    seeds = row_seeds(rows, seed)
    return [draw_crop(SIZE_HW, data, sample_seed=int(each)) for each in seeds]


def decode_stored(rows, row):
    planes = {name: decode_plane(rows[name][row].as_py()) for name in PLANES}
    return decode_row(rows, row), planes


def test_a_crop_is_the_stored_image_and_its_stored_maps(rows):
    batch = collate(rows, DATA, seed=0)
    assert batch.images.shape == (6, 3, 32, 32)
    assert batch.targets.zoom.tolist() == [1.0] * 6
    for row, crop in enumerate(draw_crops(rows, DATA)):
        pixels, planes = decode_stored(rows, row)
        part = (crop.rows, crop.columns)
        np.testing.assert_array_equal(batch.images[row].permute(1, 2, 0), pixels[part])
        for name in PLANES:
            np.testing.assert_array_equal(getattr(batch.targets, name)[row], planes[name][part])
    # The stored planes include classes outside the crop: they come from the whole map.
    np.testing.assert_array_equal(decode_label(rows, 0), blocks(0))
    np.testing.assert_array_equal(
        decode_stored(rows, 0)[1]["distance_1"], find_nearest_classes(blocks(0))[1]
    )
    assert len({crop.rows.start for crop in draw_crops(rows, DATA)}) > 1


def test_a_flip_mirrors_pixels_and_maps(rows):
    plain, flipped = (collate(rows, replace(ANY, flip_probability=p), seed=0) for p in (0.0, 1.0))
    for row, (height, width) in enumerate(plain.image_sizes_hw.tolist()):
        here = (row, ..., slice(height), slice(width))
        assert torch.equal(flipped.images[here], plain.images[here].flip(-1))
        for name in PLANES:
            before, after = (getattr(b.targets, name)[here] for b in (plain, flipped))
            assert torch.equal(after, before.flip(-1)), name


def test_small_images_are_padded_with_void(rows):
    data = replace(DATA, crop_px=128, scale_range=(0.5, 0.5))
    batch = collate(rows, data, seed=0)
    assert batch.image_sizes_hw.tolist() == [[24, 48]] * 6
    assert batch.images.shape == (6, 3, 128, 128)
    for name in PLANES:
        plane = getattr(batch.targets, name)
        assert plane.shape == (6, 128, 128)
        assert plane[:, 24:].eq(255).all()
        assert plane[:, :, 48:].eq(255).all()
    assert not batch.images[:, :, 24:].any()
    assert batch.targets.zoom.tolist() == [0.5] * 6
    assert (batch.targets.label[:, :24, :48] < 3).any()


def test_a_crop_matches_a_crop_of_the_resized_image(rows):
    data = replace(DATA, scale_range=(2.0, 2.0))
    batch = collate(rows, data, seed=0)
    assert batch.targets.zoom.tolist() == [2.0] * 6
    for row, crop in enumerate(draw_crops(rows, data)):
        pixels, planes = decode_stored(rows, row)
        whole = resize_and_flip(pixels, ResizeFlip(2 * SIZE_HW[0], 2 * SIZE_HW[1], flipped=False))
        y, x = 2 * crop.rows.start, 2 * crop.columns.start
        inner = whole[y + 1 : y + 31, x + 1 : x + 31]
        np.testing.assert_array_equal(batch.images[row, :, 1:31, 1:31].permute(1, 2, 0), inner)
        for name in PLANES:
            doubled = planes[name].repeat(2, axis=0).repeat(2, axis=1)
            np.testing.assert_array_equal(
                getattr(batch.targets, name)[row], doubled[y : y + 32, x : x + 32]
            )


def test_scales_and_positions_cover_their_ranges():
    data = DataConfig(crop_px=832, scale_range=(0.75, 2.0))
    crops = [draw_crop((1024, 2048), data, sample_seed=each) for each in range(400)]
    zooms = np.array([each.zoom for each in crops])
    assert 0.749 < zooms.min() < 0.78
    assert 1.97 < zooms.max() < 2.003
    starts = np.array([each.columns.start / (2048 - 832 / each.zoom) for each in crops])
    assert abs(starts.mean() - 0.5) < 0.05
    assert starts.min() < 0.02
    assert starts.max() > 0.98
    for each in crops:
        tall = round(1024 * each.zoom)
        assert each.transform.height_px == min(832, tall)
        assert each.transform.width_px == 832
        assert each.rows.stop <= 1024
        assert each.columns.stop <= 2048


def test_a_sample_depends_only_on_seed_epoch_and_image(rows):
    whole, alone = collate(rows, ANY, seed=4), collate(rows.slice(3, 1), ANY, seed=4)
    assert torch.equal(whole.images[3:4], alone.images)
    for name, each in alone.targets._asdict().items():
        assert torch.equal(getattr(whole.targets, name)[3:4], each), name
    again = with_plan(rows.drop_columns(["epoch", "lane"]), epoch=1)
    for changed in (collate(again, ANY, seed=4), collate(rows, ANY, seed=5)):
        assert (changed.targets.sample_seed != whole.targets.sample_seed).all()
        assert (changed.targets.zoom != whole.targets.zoom).all()


def test_prepared_rows_make_the_same_batch(rows):
    data = replace(ANY, color=ColorConfig(brightness=0.4, hue=0.1))
    prepared = prepare_rows(rows, data, seed=2)
    assert "image" not in prepared.column_names
    one, other = (collate(each.slice(2, 3), data, seed=2) for each in (prepared, rows))
    for name in ("images", "image_sizes_hw", "image_id", "original_sizes_hw", "lanes", "colors"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name, each in one.targets._asdict().items():
        assert torch.equal(each, getattr(other.targets, name)), name


def test_evaluation_uses_whole_images_at_their_own_size(rows):
    batch = collate_for_test(rows, ANY)
    assert batch.image_sizes_hw.tolist() == [list(SIZE_HW)] * 6
    assert batch.images.shape == (6, 3, 64, 96)
    np.testing.assert_array_equal(
        batch.images[1, :, : SIZE_HW[0]].permute(1, 2, 0), decode_row(rows, 1)
    )
    assert batch.targets.label.shape == (6, 0, 0)
    fixed = replace(ANY, test_size_hw=(40, 64))
    resized = collate_images([row.as_py() for row in rows["image"]], fixed)
    assert resized.image_sizes_hw.tolist() == [[40, 64]] * 6
    assert resized.original_sizes_hw.tolist() == [list(SIZE_HW)] * 6
    assert get_test_transform(SIZE_HW, fixed) == ResizeFlip(40, 64, flipped=False)


def test_errors_name_the_invalid_map(rows):
    bad = rows.slice(1, 1).set_column(
        rows.column_names.index("other_2"), "other_2", pa.array([b"no map"], pa.binary())
    )
    with pytest.raises(DatasetError, match="image 2: its map other_2 cannot be decoded"):
        collate(bad, DATA, seed=0)
    mismatched = rows.slice(0, 1).set_column(
        rows.column_names.index("width"), "width", pa.array([90], pa.int32())
    )
    with pytest.raises(DatasetError, match=r"image 1 has .*\(48, 96\), its row says \(48, 90\)"):
        collate(mismatched, DATA, seed=0)


def test_color_jitter_is_drawn_per_sample_and_off_by_default(rows):
    assert collate(rows, DATA, seed=0).colors is None
    data = replace(DATA, color=ColorConfig(brightness=0.4, contrast=0.2, hue=0.1))
    colors = torch.cat([collate(rows, data, seed=seed).colors for seed in range(40)])
    assert colors.shape == (240, 4)
    assert colors[:, 2].eq(1).all()
    for column, (low, high) in enumerate(((0.6, 1.4), (0.8, 1.2), (1, 1), (-0.1, 0.1))):
        drawn = colors[:, column]
        assert low - 1e-6 <= drawn.min() <= low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) <= drawn.max() <= high + 1e-6
    # The draws of one sample are independent.
    assert abs(np.corrcoef(colors[:, 0], colors[:, 3])[0, 1]) < 0.2
