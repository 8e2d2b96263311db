from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from pycocotools import mask as coco_mask

from bsm.field import boxes_to_frames
from pipeline.data.augment import get_test_transform
from pipeline.data.collate import collate, collate_for_test, collate_images, prepare_rows
from pipeline.data.schema import FIELD_SIDE, INSTANCE_SCHEMA
from pipeline.errors import DatasetError
from pipeline.recipe import DataConfig
from tests.pipeline.data.tiny_shards import tiny_row

DATA = DataConfig(
    short_edge_px=(96,), test_short_edge_px=96, long_edge_px=200, flip_probability=0.0
)
FLIPPED = replace(DATA, flip_probability=1.0)
# image_id % 4 objects each; 102 and 111 begin with a crowd, 100 has none.
IDS = (100, 101, 102, 103, 111)


def rows_of(ids=IDS, *, epoch=0, sizes=((48, 64),)):
    rows = [tiny_row(each, size_hw=sizes[i % len(sizes)]) for i, each in enumerate(ids)]
    table = pa.Table.from_pylist(rows, schema=INSTANCE_SCHEMA)
    return table.append_column("epoch", pa.array([epoch] * len(ids))).append_column(
        "lane", pa.array(range(len(ids)))
    )


def assert_equal(a, b):
    for name in ("images", "image_sizes_hw", "image_id", "original_sizes_hw", "lanes"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    for name, each, other in zip(a.targets._fields, a.targets, b.targets, strict=True):
        assert (each is None and other is None) or torch.equal(each, other), name


def test_targets_hold_every_object_except_crowds():
    batch = collate(rows_of(), DATA, seed=0)
    assert batch.targets.valid.sum(1).tolist() == [0, 1, 1, 3, 2]
    assert batch.targets.valid.shape == (5, 3)
    assert batch.targets.category_index.tolist() == [
        [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 2], [1, 2, 0],
    ]  # fmt: skip
    assert batch.targets.squeeze_field.shape == (5, 3, FIELD_SIDE, FIELD_SIDE)
    assert batch.targets.squeeze_field[3, :, 5, 7].tolist() == [3, 2, 1]
    assert batch.targets.squeeze_field[4, :, 5, 7].tolist() == [10, 9, 0]
    expected = 2 * torch.tensor(tiny_row(103)["boxes_xyxy"])
    assert torch.equal(batch.targets.boxes_xyxy[3], expected.float())
    assert torch.equal(batch.targets.field_frame_xyxy[3], boxes_to_frames(expected.float()))
    empty = ~batch.targets.valid
    for name in ("boxes_xyxy", "category_index", "squeeze_field", "field_frame_xyxy"):
        assert getattr(batch.targets, name)[empty].eq(0).all(), name
    assert batch.image_id.tolist() == list(IDS)
    assert batch.lanes.tolist() == [0, 1, 2, 3, 4]
    assert batch.image_sizes_hw.tolist() == [[96, 128]] * 5
    assert batch.original_sizes_hw.tolist() == [[48, 64]] * 5


def test_a_flip_mirrors_pixels_boxes_and_field_frames():
    plain, flipped = (collate(rows_of(), data, seed=0) for data in (DATA, FLIPPED))
    assert torch.equal(flipped.images, plain.images.flip(3))
    valid = plain.targets.valid
    boxes = plain.targets.boxes_xyxy[valid]
    mirrored = torch.stack([128 - boxes[:, 2], boxes[:, 1], 128 - boxes[:, 0], boxes[:, 3]], 1)
    assert torch.equal(flipped.targets.boxes_xyxy[valid], mirrored)
    frames, turned = (each.targets.field_frame_xyxy[valid] for each in (plain, flipped))
    assert torch.equal(turned[:, 0::2], 128 - frames[:, 0::2])
    assert (turned[:, 0] > turned[:, 2]).all()
    assert torch.equal(flipped.targets.squeeze_field, plain.targets.squeeze_field)


@pytest.mark.parametrize("data", [DATA, FLIPPED])
def test_masks_fill_their_boxes(data):
    batch = collate(rows_of(), data, seed=0, with_masks=True)
    # As stored: the input is twice as large.
    assert batch.targets.masks.shape == (5, 3, 48, 64)
    scale_xy = batch.targets.mask_scale_xy
    assert scale_xy[batch.targets.valid].eq(0.5).all()
    for image, slot in batch.targets.valid.nonzero().tolist():
        box = batch.targets.boxes_xyxy[image, slot] * scale_xy[image, slot].repeat(2)
        x0, y0, x1, y1 = box.int().tolist()
        mask = batch.targets.masks[image, slot]
        assert mask[y0:y1, x0:x1].all()
        assert mask.sum() == (y1 - y0) * (x1 - x0)
    assert not batch.targets.masks[~batch.targets.valid].any()


def test_masks_equal_the_stored_ones_at_stored_size():
    data = replace(DATA, short_edge_px=(48,))
    batch = collate(rows_of((103,)), data, seed=0, with_masks=True)
    for slot, rle in enumerate(tiny_row(103)["rle"]):
        stored = coco_mask.decode({"size": [48, 64], "counts": rle})
        np.testing.assert_array_equal(batch.targets.masks[0, slot, :48, :64].numpy(), stored)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_masks_much_larger_than_the_input_are_reduced_by_a_whole_factor(flip):
    data = replace(DATA, short_edge_px=(39,), flip_probability=flip)
    size_hw = (80, 120)
    batch = collate(rows_of((103,), sizes=(size_hw,)), data, seed=0, with_masks=True)
    # 80 x 120 to an input of 39 x 59: half the size, not 39 / 80 of it.
    assert batch.targets.masks.shape == (1, 3, 40, 60)
    assert batch.targets.mask_scale_xy[0, 0].tolist() == pytest.approx([60 / 59, 40 / 39])
    for slot, rle in enumerate(tiny_row(103, size_hw=size_hw)["rle"]):
        stored = coco_mask.decode({"size": list(size_hw), "counts": rle})
        stored = stored[:, ::-1] if flip else stored
        half = stored.reshape(40, 2, 60, 2).mean((1, 3)) >= 0.5
        np.testing.assert_array_equal(batch.targets.masks[0, slot].numpy(), half)


def test_images_of_all_sizes_share_a_padded_batch():
    batch = collate(rows_of(sizes=((48, 64), (64, 48), (33, 70))), DATA, seed=0)
    assert batch.images.shape == (5, 3, 128, 224)
    assert batch.image_sizes_hw.tolist()[:3] == [[96, 128], [128, 96], [94, 200]]
    for image, (height, width) in zip(batch.images, batch.image_sizes_hw.tolist(), strict=True):
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
        assert image[:, :height, :width].float().std() > 20


def test_images_without_objects_make_a_batch():
    batch = collate(rows_of((100, 104)), DATA, seed=0, with_masks=True)
    assert batch.targets.valid.shape == (2, 0)
    assert batch.targets.masks.shape == (2, 0, 48, 64)
    assert batch.targets.squeeze_field.shape == (2, 0, FIELD_SIDE, FIELD_SIDE)


def test_pixels_and_seeds_depend_only_on_seed_epoch_and_image():
    data = replace(DATA, short_edge_px=(64, 80, 96, 112), flip_probability=0.5)
    whole = collate(rows_of(), data, seed=4)
    alone = collate(rows_of().slice(3, 1), data, seed=4)
    height, width = alone.image_sizes_hw[0].tolist()
    assert torch.equal(whole.images[3, :, :height, :width], alone.images[0, :, :height, :width])
    assert whole.targets.sample_seed[3] == alone.targets.sample_seed[0]
    for changed in (collate(rows_of(epoch=1), data, seed=4), collate(rows_of(), data, seed=5)):
        assert (changed.targets.sample_seed != whole.targets.sample_seed).all()
        assert changed.image_sizes_hw.tolist() != whole.image_sizes_hw.tolist()


def test_prepared_rows_make_the_same_batch():
    data = replace(DATA, short_edge_px=(64, 96), flip_probability=0.5)
    rows = rows_of(sizes=((48, 64), (64, 48)))
    prepared = prepare_rows(rows, data, seed=2)
    assert "image" not in prepared.column_names
    for part in (slice(0, 5), slice(2, 4)):
        first, count = part.start, part.stop - part.start
        assert_equal(
            collate(prepared.slice(first, count), data, seed=2, with_masks=True),
            collate(rows.slice(first, count), data, seed=2, with_masks=True),
        )


def test_evaluation_uses_the_fixed_size_and_no_targets():
    batch = collate_for_test(rows_of().drop_columns(["epoch", "lane"]), FLIPPED)
    assert batch.image_sizes_hw.tolist() == [[96, 128]] * 5
    assert batch.targets.valid.shape == (5, 0)
    assert batch.image_id.tolist() == list(IDS)
    same = collate_images([row["image"] for row in rows_of().to_pylist()], FLIPPED)
    assert torch.equal(same.images, batch.images)
    assert torch.equal(same.original_sizes_hw, batch.original_sizes_hw)
    assert same.image_id.tolist() == [0, 1, 2, 3, 4]
    assert get_test_transform((48, 64), FLIPPED).flipped is False


def test_a_batch_moves_to_a_device():
    moved = collate(rows_of(), DATA, seed=0, with_masks=True).to("meta")
    assert {each.device.type for each in (moved.images, moved.image_sizes_hw, *moved.targets)} == {
        "meta"
    }
    assert moved.image_id.device.type == "cpu"
    assert collate(rows_of(), DATA, seed=0).to("meta").targets.masks is None


def test_errors_name_the_invalid_image():
    rows = rows_of((101, 102))
    broken = rows.set_column(
        rows.column_names.index("image"), "image", pa.array([b"no image"] * 2, pa.binary())
    )
    with pytest.raises(DatasetError, match="image 101 cannot be decoded"):
        collate(broken, DATA, seed=0)
    mismatched = rows.set_column(
        rows.column_names.index("height"), "height", pa.array([49, 49], pa.int32())
    )
    with pytest.raises(DatasetError, match=r"image 101 has .*\(48, 64\), its row says \(49, 64\)"):
        collate(mismatched, DATA, seed=0)
