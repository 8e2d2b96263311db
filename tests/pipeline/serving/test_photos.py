"""Photos in every form give the same pixels, and every unreadable one is reported."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DatasetError
from pipeline.serving.photos import check_photos, read_photo
from tests.pipeline.data.coco_samples import bomb_png


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 255, (72, 96, 3), dtype=np.uint8)


def encode(array, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def test_all_forms_give_the_same_pixels(photo, tmp_path):
    data = encode(photo)
    (tmp_path / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    jpeg = base64.b64encode(encode(photo, "JPEG")).decode()
    for form in (photo, data, bytearray(data), tmp_path / "a.png", str(tmp_path / "a.png"), text):
        np.testing.assert_array_equal(read_photo(form, name="it"), photo)
    assert read_photo(jpeg, name="it").shape == photo.shape


def test_gray_and_transparent_images_become_rgb(photo):
    gray = np.ascontiguousarray(photo[:, :, 0])
    assert read_photo(gray, name="it").shape == (72, 96, 3)
    assert read_photo(encode(gray), name="it").shape == (72, 96, 3)
    alpha = np.dstack([photo, np.zeros((72, 96), np.uint8)])
    np.testing.assert_array_equal(read_photo(encode(alpha), name="it"), photo)


def test_all_unreadable_photos_are_reported_at_once(photo, tmp_path):
    cut = encode(photo, "JPEG")[:30]
    photos = [photo, "no/such.jpg", b"text", 7, photo.astype(np.float32), cut, photo]
    with pytest.raises(DatasetError) as raised:
        check_photos(photos)
    text = str(raised.value)
    assert text.startswith("5 of 7 images cannot be read, nothing was predicted:")
    for part in (
        "image 1 (no/such.jpg): No such file",
        "image 2: not an image file, or its header is broken: it starts with b'text' (4 bytes)",
        "image 3: int is not a path",
        "image 4 is an array of float32",
        "image 5",
    ):
        assert part in text
    assert "image 0" not in text


def test_a_decompression_bomb_is_refused_by_its_header():
    with pytest.raises(DatasetError, match="it: 20000 x 10000 pixels, the limit is 178956970"):
        read_photo(bomb_png(20_000, 10_000), name="it")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_other_formats_are_read_from_base64_too(photo, kind):
    data = encode(photo, kind)
    text = base64.b64encode(data).decode()
    np.testing.assert_array_equal(read_photo(text, name="it"), read_photo(data, name="it"))


def test_what_decoding_changes_is_logged_with_numbers(photo, caplog):
    alpha = encode(np.dstack([photo, np.zeros((72, 96), np.uint8)]))
    deep = encode(photo[:, :, 0].astype(np.uint16) * 16)
    check_photos([photo, alpha, deep])
    assert "image 1: 100 % of the pixels are not opaque" in caplog.text
    assert "image 2: values up to 4064 become values up to 15" in caplog.text
