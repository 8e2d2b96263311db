"""What crops and pasted objects leave of an object, against masks on whole planes."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bsm.field import boxes_to_frames, field_from_mask
from pipeline.data.augment import ResizeFlip
from pipeline.data.copy_paste import _draw_layer, blend, paste_objects
from pipeline.data.mask_patches import Patch, resize_patch, trim_patch
from pipeline.data.objects import crop_objects
from pipeline.data.samples import Samples, transform_objects
from pipeline.data.schema import FIELD_SIDE
from tests.pipeline.data.drawn_samples import Drawn, drawn, find_box, read_drawn, resize_plane

PHASES = (Phase.explicit, Phase.generate)
"""A failing example of drawn masks takes minutes to shrink."""


def assert_measured(objects, index: int, mask: np.ndarray):
    """The box, the frame and the field are those of a mask on a whole plane."""
    box = torch.tensor(find_box(mask), dtype=torch.float32)
    assert torch.equal(objects.boxes_xyxy[index], box)
    assert torch.equal(objects.frames_xyxy[index], boxes_to_frames(box))
    expected = field_from_mask(torch.from_numpy(mask.copy()), box, side=FIELD_SIDE)
    assert torch.equal(objects.squeeze_field[index], expected)


def paint(patch: Patch, size_hw: tuple[int, int]) -> np.ndarray:
    plane = np.zeros(size_hw, np.uint8)
    x0, y0, x1, y1 = patch.box_xyxy
    plane[y0:y1, x0:x1] = patch.pixels
    return plane


@given(drawn, st.data())
@settings(max_examples=20, deadline=None, phases=PHASES)
def test_a_crop_gives_the_objects_that_ingest_would_store_for_the_cropped_image(image, data):
    height, width = image.size_hw
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    stored = read_drawn([image])
    found = crop_objects(stored, [(x0, y0, x1, y1)])
    left = {
        category: mask[y0:y1, x0:x1]
        for category, mask in enumerate(image.masks)
        if mask[y0:y1, x0:x1].any()
    }
    assert found.category_index.tolist() == list(left)
    offset = torch.tensor([x0, y0, x0, y0])
    for index, (category, mask) in enumerate(left.items()):
        np.testing.assert_array_equal(paint(found.patches[index], mask.shape), mask)
        if mask.sum() < image.masks[category].sum():
            assert_measured(found, index, mask)
        else:
            for name in ("boxes_xyxy", "frames_xyxy"):
                before = getattr(stored, name)[category]
                assert torch.equal(getattr(found, name)[index], before - offset)
            assert torch.equal(found.squeeze_field[index], stored.squeeze_field[category])


def make_samples(images: Sequence[Drawn], transforms: Sequence[ResizeFlip], *, seed: int):
    rng = np.random.default_rng(seed)
    pixels = [
        rng.integers(0, 256, (each.height_px, each.width_px, 3), np.uint8) for each in transforms
    ]
    return transform_objects(
        read_drawn(list(images)),
        [image.size_hw for image in images],
        pixels,
        transforms,
        seeds=rng.integers(0, 2**62, len(images)),
    )


def to_planes(image: Drawn, transform: ResizeFlip) -> list[np.ndarray]:
    planes = [resize_plane(mask, transform[:2]) for mask in image.masks]
    return [plane[:, ::-1] if transform.flipped else plane for plane in planes]


transforms = st.tuples(st.integers(6, 40), st.integers(6, 40), st.booleans()).map(
    lambda drawn: ResizeFlip(*drawn)
)


@given(drawn, drawn, transforms, transforms, st.integers(0, 2**31))
@settings(max_examples=20, deadline=None, phases=PHASES)
def test_pasted_objects_take_what_they_cover_off_those_below(one, two, first, second, seed):
    samples = make_samples([one, two], [first, second], seed=seed)
    before = [image.copy() for image in samples.images]
    layers = [_draw_layer(samples, 0, 1), _draw_layer(samples, 1, 0)]
    planes = [to_planes(one, first), to_planes(two, second)]
    starts = (0, len(one.masks))
    pasted = paste_objects(samples, np.array([1, 0]), probability=1, with_masks=True)
    lazy = paste_objects(
        make_samples([one, two], [first, second], seed=seed),
        np.array([1, 0]),
        probability=1,
        with_masks=False,
    )
    for here, layer in enumerate(layers):
        found = pasted.objects.of_images(here, here + 1)
        own = samples.objects.of_images(here, here + 1)
        if layer is None:
            assert torch.equal(found.squeeze_field, own.squeeze_field)
            np.testing.assert_array_equal(pasted.images[here], before[here])
            continue
        # The cover is that of some objects of the other sample, moved as a whole.
        size_hw = before[here].shape[:2]
        chosen = [planes[1 - here][int(c) - starts[1 - here]] for c in layer.objects.category_index]
        offsets = {
            (patch.x - find_box(plane)[0], patch.y - find_box(plane)[1])
            for patch, plane in zip(layer.objects.patches, chosen, strict=True)
        }
        assert len(offsets) == 1
        cover = paint(layer.cover, size_hw)
        assert cover.sum() == np.any(chosen, axis=0).sum()
        check_below(found, own, planes[here], cover, start=starts[here])
        check_pasted(found, layer, size_hw)
        check_pixels(pasted.images[here], before[here], before[1 - here], cover, offsets.pop())
        without = lazy.objects.of_images(here, here + 1)
        for name in ("boxes_xyxy", "frames_xyxy", "category_index", "squeeze_field"):
            assert torch.equal(getattr(found, name), getattr(without, name)), name
        np.testing.assert_array_equal(pasted.images[here], lazy.images[here])
        lost = len(own.image) + len(layer.objects.image) - len(found.image)
        assert pasted.dropped[here] == lazy.dropped[here] == lost


def check_below(found, own, planes, cover, *, start: int):
    """The sample's own objects are what the cover leaves of them."""
    index = 0
    for each, plane in enumerate(planes):
        rest = plane & (1 - cover)
        if plane.any() and not rest.any():
            continue
        assert found.category_index[index] == start + each
        np.testing.assert_array_equal(paint(found.patches[index], cover.shape), rest)
        assert found.patches[index].area_px == rest.sum()
        if rest.sum() < plane.sum():
            assert_measured(found, index, rest)
        else:
            for name in ("boxes_xyxy", "frames_xyxy", "squeeze_field"):
                assert torch.equal(getattr(found, name)[index], getattr(own, name)[each])
        index += 1
    assert not set(found.category_index[index:].tolist()) & set(range(start, start + len(planes)))


def check_pasted(found, layer, size_hw):
    """The pasted objects follow, whole and with their own fields."""
    count = len(layer.objects.image)
    for name in ("boxes_xyxy", "frames_xyxy", "category_index", "squeeze_field"):
        assert torch.equal(getattr(found, name)[-count:], getattr(layer.objects, name))
    boxes = layer.objects.boxes_xyxy
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor(size_hw[::-1] * 2)).all()


def check_pixels(found, own, other, cover, offset_xy):
    """Far inside the cover are the other image's pixels, far outside the sample's own."""
    ones = np.ones((5, 5), np.uint8)
    outside = cv2.dilate(cover, ones) == 0
    np.testing.assert_array_equal(found[outside], own[outside])
    y, x = np.nonzero(cv2.erode(cover, ones, borderType=cv2.BORDER_CONSTANT, borderValue=0))
    np.testing.assert_array_equal(found[y, x], other[y - offset_xy[1], x - offset_xy[0]])


def test_edges_are_mixed_by_a_gaussian():
    rng = np.random.default_rng(0)
    below, above = rng.integers(0, 256, (2, 30, 40, 3), np.uint8)
    disk = cv2.circle(np.zeros((30, 40), np.uint8), (20, 14), 9, 1, -1)
    alpha = cv2.GaussianBlur(255 * disk, (5, 5), 1.0).astype(int)[:, :, None]
    expected = (below * (255 - alpha) + above * alpha + 127) // 255
    cover = trim_patch(Patch(0, 0, disk))
    x0, y0, x1, y1 = cover.box_xyxy
    around = above[y0 - 2 : y1 + 2, x0 - 2 : x1 + 2].copy()
    frozen = below.copy()
    frozen.flags.writeable = False
    kept = frozen.copy()
    assert ((alpha > 0) & (alpha < 255)).sum() > 100
    np.testing.assert_array_equal(blend(frozen, around, (x0 - 2, y0 - 2), cover), expected)
    np.testing.assert_array_equal(frozen, kept)


@given(drawn, st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=60, deadline=None, phases=PHASES)
def test_a_patch_is_resized_like_its_whole_plane(image, height, width):
    mask = image.masks[0]
    patch = trim_patch(Patch(0, 0, mask))
    expected = resize_plane(mask, (height, width))
    found = resize_patch(patch, mask.shape, (height, width))
    if found is None:
        assert not expected.any()
    else:
        assert list(found.box_xyxy) == find_box(expected)
        np.testing.assert_array_equal(paint(found, (height, width)), expected)


def test_a_sample_without_a_partner_s_objects_stays_as_it_is():
    image = Drawn((np.ones((8, 8), np.uint8),))
    samples = make_samples([image, image], [ResizeFlip(8, 8, flipped=False)] * 2, seed=0)
    same: Samples = paste_objects(samples, np.array([1, 0]), probability=0, with_masks=True)
    assert same.dropped.tolist() == [0, 0]
    assert torch.equal(same.objects.squeeze_field, samples.objects.squeeze_field)
