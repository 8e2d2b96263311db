import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.augment import (
    ResizeFlip,
    draw_train_transform,
    get_test_transform,
    read_pixels,
    resize_and_flip,
)
from pipeline.data.photo import decode_image
from pipeline.data.seeds import permutation, sample_seeds
from pipeline.errors import DatasetError
from pipeline.recipe import DataConfig

RNG = np.random.default_rng(0)
SMOOTH = cv2.GaussianBlur(RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8), (9, 9), 3)


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size_hw", "short_edge_px", "expected"),
    [
        # detectron2's ResizeShortestEdge with a long edge of 1333.
        ((480, 640), 800, (800, 1067)),
        ((640, 480), 800, (1067, 800)),
        ((427, 640), 800, (800, 1199)),
        ((200, 640), 800, (417, 1333)),
        ((500, 500), 640, (640, 640)),
        ((1, 5000), 800, (1, 1333)),
    ],
)
def test_the_short_edge_is_scaled_unless_the_long_edge_exceeds_its_limit(
    size_hw, short_edge_px, expected
):
    data = DataConfig(test_short_edge_px=short_edge_px)
    assert get_test_transform(size_hw, data)[:2] == expected


def test_transforms_cover_all_choices_and_depend_only_on_the_sample():
    data = DataConfig(short_edge_px=(640, 704, 800), flip_probability=0.25)
    seeds = sample_seeds(3, epochs=np.zeros(4000, np.int64), image_ids=np.arange(4000))
    drawn = [draw_train_transform((480, 640), data, sample_seed=int(seed)) for seed in seeds]
    heights, counts = np.unique([each.height_px for each in drawn], return_counts=True)
    assert heights.tolist() == [640, 704, 800]
    assert counts.min() > 1200
    assert 0.22 < np.mean([each.flipped for each in drawn]) < 0.28
    assert drawn == [
        draw_train_transform((480, 640), data, sample_seed=int(seed)) for seed in seeds
    ]


def test_scale_jitter_draws_all_scales_and_positions_of_a_square():
    data = DataConfig(scale_jitter=(0.1, 2.0), crop_px=512, flip_probability=0.25)
    seeds = sample_seeds(3, epochs=np.zeros(2000, np.int64), image_ids=np.arange(2000))
    height, width = 480, 640
    scales, starts = [], []
    for seed in seeds:
        drawn = draw_train_transform((height, width), data, sample_seed=int(seed))
        x0, y0, x1, y1 = drawn.window_xyxy
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert max(drawn[:2]) <= 512
        # Both axes have the same scale, up to a pixel.
        scale = drawn.width_px / (x1 - x0)
        assert abs(drawn.height_px - scale * (y1 - y0)) <= 1 + scale
        scales.append(scale * width / 512)
        if drawn.width_px < 512:
            assert (x0, x1) == (0, width)
        elif x1 - x0 < width:
            starts.append(x0 / (width - (x1 - x0)))
    assert min(scales) == pytest.approx(0.1, abs=0.01)
    assert max(scales) == pytest.approx(2.0, abs=0.01)
    assert np.mean(scales) == pytest.approx(1.05, abs=0.05)
    assert (min(starts), np.mean(starts), max(starts)) == pytest.approx((0, 0.5, 1), abs=0.04)


def test_a_window_is_cropped_before_it_is_resized():
    transform = ResizeFlip(40, 50, flipped=True, window_xyxy=(10, 5, 60, 45))
    np.testing.assert_array_equal(resize_and_flip(SMOOTH, transform), SMOOTH[5:45, 10:60][:, ::-1])


def test_seeds_depend_on_every_part_and_stay_the_same_across_versions():
    ids = np.arange(1000)
    zeros = np.zeros(1000, np.int64)
    found = np.concatenate(
        [
            sample_seeds(0, epochs=zeros, image_ids=ids),
            sample_seeds(1, epochs=zeros, image_ids=ids),
            sample_seeds(0, epochs=zeros + 1, image_ids=ids),
        ]
    )
    assert len(set(found.tolist())) == 3000
    assert found.min() >= 0
    # A run that a later version resumes must see the same pixels.
    assert found[[0, 1, 1000, 2000]].tolist() == [
        7403809227180704479,
        7132288809301141075,
        8295357098065133285,
        3174211323569380391,
    ]
    assert permutation(6, 1, 2).tolist() == [0, 2, 1, 5, 3, 4]


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("size_hw", [(30, 40), (133, 177), (60, 80)])
def test_resized_pixels_match_pillow(size_hw, flipped):
    expected = Image.fromarray(SMOOTH).resize(size_hw[::-1], Image.Resampling.BILINEAR)
    expected = np.asarray(expected, dtype=np.int64)
    if flipped:
        expected = expected[:, ::-1]
    found = resize_and_flip(SMOOTH, ResizeFlip(*size_hw, flipped))
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 1


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = encode(Image.fromarray(SMOOTH), "JPEG", quality=95, exif=exif)
    assert Image.open(io.BytesIO(image)).getexif()[0x0112] == 6
    assert decode_image(image, name="x").shape == (60, 80, 3)


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("L", "PNG")],
)
def test_every_image_mode_is_converted_to_rgb(mode, file_format):
    options = {"quality": 95} if file_format == "JPEG" else {}
    image = Image.fromarray(SMOOTH).convert(mode)
    expected = np.asarray(image.convert("RGB"), dtype=np.int64)
    found = decode_image(encode(image, file_format, **options), name="x")
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 6


def test_16_bit_images_are_converted_to_8_bits():
    deep = (SMOOTH[:, :, 0].astype(np.uint16) << 8) + 77
    found = decode_image(cv2.imencode(".png", deep)[1].tobytes(), name="x")
    assert found.dtype == np.uint8
    assert np.abs(found[:, :, 1].astype(int) - SMOOTH[:, :, 0]).max() <= 1


def test_arrays_and_files_give_the_same_pixels():
    from_file = read_pixels(encode(Image.fromarray(SMOOTH), "PNG"), name="x")
    np.testing.assert_array_equal(from_file, SMOOTH)
    np.testing.assert_array_equal(read_pixels(SMOOTH, name="x"), from_file)
    alpha = np.concatenate([SMOOTH, SMOOTH[:, :, :1]], axis=2)
    np.testing.assert_array_equal(read_pixels(alpha, name="x"), from_file)
    gray = read_pixels(SMOOTH[:, :, 0], name="x")
    assert gray.shape == (60, 80, 3)
    np.testing.assert_array_equal(gray[:, :, 0], from_file[:, :, 0])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", r"cannot be decoded as an image \(0 bytes\)"),
        (b"not an image", "cannot be decoded"),
        (SMOOTH.astype(np.float32), "float32"),
        (SMOOTH[:, :, :2], "give uint8 pixels"),
        (SMOOTH[:0], "no pixels"),
    ],
)
def test_invalid_images_are_rejected(image, message):
    with pytest.raises(DatasetError, match=message):
        read_pixels(image, name="the image")
