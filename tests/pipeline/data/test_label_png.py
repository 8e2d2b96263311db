import io
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.label_png import LabelError, read_header, read_values
from tests.pipeline.data.coco_samples import bomb_png
from tests.pipeline.data.street_samples import gray_png, png

VALUES = np.arange(12 * 20, dtype=np.uint16).reshape(12, 20) * 251


def catch_error(data: bytes, *, bits: int = 8, max_pixels: int = 10**6) -> tuple[str, str]:
    with pytest.raises(LabelError) as caught:
        read_values(data, bits=bits, max_pixels=max_pixels)
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize(("bits", "kind"), [(8, np.uint8), (16, np.uint16)])
def test_values_are_read_as_written(bits, kind):
    values = VALUES.astype(kind)
    found = read_values(png(values), bits=bits, max_pixels=240)
    np.testing.assert_array_equal(found, values)
    assert read_header(png(values)).size_hw == (12, 20)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_not_stretched(bits):
    values = (VALUES // 251 % 2**bits).astype(np.uint8)
    found = read_values(gray_png(values, bits), bits=None, max_pixels=240)
    np.testing.assert_array_equal(found, values)
    assert catch_error(gray_png(values, bits)) == (
        "label_depth",
        f"it has {bits} bits per pixel, expected 8",
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_few_bits_gives_its_indices(bits):
    image = Image.new("P", VALUES.shape[::-1])
    image.putdata((VALUES // 251 % 2**bits).astype(np.uint8).ravel().tolist())
    image.putpalette([7, 0, 0] * 2**bits)
    out = io.BytesIO()
    image.save(out, format="PNG", bits=bits)
    data = out.getvalue()
    assert read_header(data).bits == bits
    found = read_values(data, bits=8, max_pixels=240, take_palette=True)
    np.testing.assert_array_equal(found, VALUES // 251 % 2**bits)


def test_a_palette_is_refused_or_its_indices_are_taken():
    image = Image.fromarray(VALUES.astype(np.uint8) % 3).convert("P")
    image.putdata((VALUES % 3).astype(np.uint8).ravel().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0, 9, 9, 9])
    assert catch_error(png(image)) == ("label_palette", "it has a palette")
    found = read_values(png(image), bits=8, max_pixels=240, take_palette=True)
    np.testing.assert_array_equal(found, VALUES % 3)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (Image.new("RGB", (20, 12)), "label_format", "3 color channels"),
        (Image.new("RGBA", (20, 12)), "label_format", "4 channels"),
        (Image.new("LA", (20, 12)), "label_format", "alpha"),
        (Image.new("1", (20, 12)), "label_depth", "1 bits per pixel, expected 8"),
        (Image.fromarray(VALUES), "label_depth", "16 bits per pixel, expected 8"),
    ],
)
def test_refuses_pixels_that_are_not_8_bit_gray(image, kind, message):
    found = catch_error(png(image))
    assert found[0] == kind
    assert message in found[1]


def test_refuses_8_bit_instance_ids():
    assert catch_error(png(VALUES.astype(np.uint8)), bits=16) == (
        "label_depth",
        "it has 8 bits per pixel, expected 16",
    )


def test_refuses_other_formats_than_png():
    out = io.BytesIO()
    Image.new("L", (20, 12)).save(out, format="JPEG")
    assert catch_error(out.getvalue())[0] == "label_format"
    assert catch_error(b"") == ("label_format", "the file is empty, which is not a PNG")


def test_finds_every_truncation():
    data = png(VALUES)
    for length in range(26, len(data)):
        assert catch_error(data[:length], bits=16)[0] == "label_unreadable"


def test_finds_every_flipped_bit_after_the_header():
    data = png(VALUES)
    for path in range(33, len(data)):
        broken = bytearray(data)
        broken[path] ^= 4
        assert catch_error(bytes(broken), bits=16)[0] == "label_unreadable"


def test_finds_valid_chunks_with_too_little_data():
    data = png(VALUES)
    path = data.index(b"IDAT")
    packed = zlib.compress(zlib.decompress(data[path + 4 : data.index(b"IEND") - 8])[:100])
    chunk = b"IDAT" + packed
    short = data[: path - 4] + len(packed).to_bytes(4, "big") + chunk
    short += zlib.crc32(chunk).to_bytes(4, "big") + data[data.index(b"IEND") - 4 :]
    assert catch_error(short, bits=16)[0] == "label_unreadable"


def test_refuses_a_decompression_bomb_by_its_header():
    # Its header says color, but the size is checked first.
    kind, message = catch_error(bomb_png(90_000, 90_000))
    assert kind == "label_size"
    assert "90000 x 90000" in message
