import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from bsm import field as reference
from pipeline.data import instance_fields
from pipeline.data.run_lengths import MaskError, RunLengths, decode_counts, read_segmentation


def _lengths(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask))["counts"]
    runs = decode_counts(encoded, mask.shape)
    return RunLengths(size_hw=mask.shape, encoded=encoded, runs=runs)


masks = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


@settings(deadline=None, max_examples=150)
@given(
    masks,
    st.lists(st.floats(-30, 50, width=32), min_size=2, max_size=2),
    st.lists(st.floats(0.25, 60, width=32), min_size=2, max_size=2),
)
def test_equals_the_torch_reference_to_the_last_byte(mask, corner, extent):
    box = np.array([*corner, corner[0] + extent[0], corner[1] + extent[1]], dtype=np.float32)
    expected = reference.field_from_mask(torch.from_numpy(mask), torch.from_numpy(box), side=16)
    assert np.array_equal(
        instance_fields.compute_squeeze_field(_lengths(mask), box, side=16), expected.numpy()
    )


def test_constants_are_those_of_the_reference():
    assert (instance_fields.FRAME_SCALE, instance_fields.FARTHEST) == (
        reference.FRAME_SCALE,
        reference.FARTHEST,
    )


def test_equals_the_reference_on_real_instances(real_data):
    folder = real_data / "coco_mini" / "annotations"
    doc = json.loads((folder / "instances_val2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in doc["images"]}
    for entry in doc["annotations"][::60]:
        mask = read_segmentation(entry["segmentation"], sizes[entry["image_id"]])
        x, y, w, h = entry["bbox"]
        box = np.array([x, y, x + w, y + h], dtype=np.float32)
        painted = coco_mask.decode({"size": list(mask.size_hw), "counts": mask.encoded})
        expected = reference.field_from_mask(
            torch.from_numpy(painted), torch.from_numpy(box), side=112
        )
        assert np.array_equal(
            instance_fields.compute_squeeze_field(mask, box, side=112), expected.numpy()
        )


@settings(deadline=None)
@given(masks)
def test_run_lengths_agree_with_pycocotools(mask):
    lengths = _lengths(mask)
    assert lengths.area_px == mask.sum()
    assert np.array_equal(instance_fields.decode_columns(lengths, 0, mask.shape[1]), mask)
    if mask.any():
        x0, y0, x1, y1 = lengths.box_xyxy
        packed = {"size": list(mask.shape), "counts": lengths.encoded}
        assert coco_mask.toBbox(packed).tolist() == [x0, y0, x1 - x0, y1 - y0]


def test_reads_equal_masks_from_all_three_formats():
    polygons = [[2.0, 1.0, 9.5, 1.0, 9.5, 6.0, 2.0, 6.0], [12, 2, 15, 2, 15, 8]]
    size = (10, 16)
    packed = coco_mask.merge(coco_mask.frPyObjects(polygons, *size))
    from_polygons = read_segmentation(polygons, size)
    compressed = {"size": list(size), "counts": packed["counts"].decode()}
    uncompressed = {"size": list(size), "counts": from_polygons.runs.tolist()}
    for form in (compressed, uncompressed):
        mask = read_segmentation(form, size)
        assert mask.encoded == from_polygons.encoded == packed["counts"]
        assert mask.runs.tolist() == from_polygons.runs.tolist()


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([], "mask_empty"),
        ([[1, 1, 2, 2]], "polygon_short"),
        ([[1, 1, 5, 1, 5, 5, 3]], "polygon_short"),
        ([[1, 1, 5, 1, 5, float("nan")]], "not_finite"),
        ([[1, 1, 5, 1, 5, float("inf")]], "not_finite"),
        ([[1, 1, 5, 1, 5, "5"]], "mask_format"),
        ([[1, 1, 5, 1, 5, None]], "mask_format"),
        # pycocotools would allocate gigabytes of memory for such an outline.
        ([[1, 1, 5, 1, 5, 1e12]], "mask_format"),
        ([[1, 1, 5, 1, 5, 10**400]], "not_finite"),
        ([[0, 0, 16, 16] * 200_000], "mask_format"),
        ([[0, 0, 16, 16] * 20_000] * 10, "mask_format"),
        ([[100, 100, 110, 100, 110, 110]], "mask_format"),
        ([[17, 17, 18, 17, 18, 18]], "mask_empty"),
        ({"size": [16, 16], "counts": [256]}, "mask_empty"),
        ({"size": [16, 16], "counts": [0, 100]}, "mask_format"),
        ({"size": [16, 16], "counts": [-5, 261]}, "mask_format"),
        ({"size": [16, 16], "counts": [0.5, 255.5]}, "mask_format"),
        ({"size": [8, 32], "counts": [0, 256]}, "mask_format"),
        ({"counts": [0, 256]}, "mask_format"),
        ({"size": [16, 16], "counts": ""}, "mask_format"),
        ({"size": [16, 16], "counts": "\u00e9\u00e9"}, "mask_format"),
        ({"size": [16, 16], "counts": "!!"}, "mask_format"),
        # An unterminated number, one of more than 40 bits, and one longer than the image.
        ({"size": [16, 16], "counts": "P"}, "mask_format"),
        ({"size": [16, 16], "counts": "P" * 40 + "1"}, "mask_format"),
        ({"size": [16, 16], "counts": "PPPPP1"}, "mask_format"),
    ],
)
def test_refuses_malformed_masks(segmentation, kind):
    with pytest.raises(MaskError) as caught:
        read_segmentation(segmentation, (16, 16))
    assert caught.value.kind == kind
    assert str(caught.value)


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_accepts_only_counts_that_fill_the_image(encoded):
    try:
        runs = decode_counts(encoded, (7, 9))
    except MaskError:
        return
    assert runs.sum() == 63
    assert runs.min() >= 0
