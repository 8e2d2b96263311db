import io
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.label_png import LabelError, read_header, read_values
from tests.pipeline.data.coco_samples import bomb_png
from tests.pipeline.data.street_samples import png

VALUES = np.arange(12 * 20, dtype=np.uint16).reshape(12, 20) * 251


def refused(data: bytes, *, bits: int = 8, most_pixels: int = 10**6) -> tuple[str, str]:
    with pytest.raises(LabelError) as caught:
        read_values(data, bits=bits, most_pixels=most_pixels)
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize(("bits", "kind"), [(8, np.uint8), (16, np.uint16)])
def test_numbers_come_as_they_were_written(bits, kind):
    values = VALUES.astype(kind)
    found = read_values(png(values), bits=bits, most_pixels=240)
    np.testing.assert_array_equal(found, values)
    assert read_header(png(values)).size_hw == (12, 20)


def test_a_palette_is_refused_or_its_numbers_are_taken():
    image = Image.fromarray(VALUES.astype(np.uint8) % 3).convert("P")
    image.putdata((VALUES % 3).astype(np.uint8).ravel().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0, 9, 9, 9])
    assert refused(png(image)) == ("label_palette", "it has a palette")
    found = read_values(png(image), bits=8, most_pixels=240, take_palette=True)
    np.testing.assert_array_equal(found, VALUES % 3)


@pytest.mark.parametrize(
    ("image", "kind", "told"),
    [
        (Image.new("RGB", (20, 12)), "label_format", "3 color channels"),
        (Image.new("RGBA", (20, 12)), "label_format", "4 channels"),
        (Image.new("LA", (20, 12)), "label_format", "alpha"),
        (Image.new("1", (20, 12)), "label_depth", "1 bits a pixel, it must have 8"),
        (Image.fromarray(VALUES), "label_depth", "16 bits a pixel, it must have 8"),
    ],
)
def test_other_pixels_than_numbers_of_8_bits_are_refused(image, kind, told):
    found = refused(png(image))
    assert found[0] == kind
    assert told in found[1]


def test_instance_ids_of_8_bits_are_refused():
    assert refused(png(VALUES.astype(np.uint8)), bits=16) == (
        "label_depth",
        "it has 8 bits a pixel, it must have 16",
    )


def test_what_is_no_png_is_refused():
    out = io.BytesIO()
    Image.new("L", (20, 12)).save(out, format="JPEG")
    assert refused(out.getvalue())[0] == "label_format"
    assert refused(b"") == ("label_format", "the file is empty, which is no PNG")


def test_every_cut_is_found():
    data = png(VALUES)
    for length in range(26, len(data)):
        assert refused(data[:length], bits=16)[0] == "label_unreadable"


def test_every_flipped_bit_behind_the_header_is_found():
    data = png(VALUES)
    for place in range(33, len(data)):
        broken = bytearray(data)
        broken[place] ^= 4
        assert refused(bytes(broken), bits=16)[0] == "label_unreadable"


def test_sound_chunks_that_hold_too_little_are_found():
    data = png(VALUES)
    place = data.index(b"IDAT")
    packed = zlib.compress(zlib.decompress(data[place + 4 : data.index(b"IEND") - 8])[:100])
    chunk = b"IDAT" + packed
    short = data[: place - 4] + len(packed).to_bytes(4, "big") + chunk
    short += zlib.crc32(chunk).to_bytes(4, "big") + data[data.index(b"IEND") - 4 :]
    assert refused(short, bits=16)[0] == "label_unreadable"


def test_a_bomb_is_refused_by_its_header():
    # Its header says color: size comes first.
    kind, told = refused(bomb_png(90_000, 90_000))
    assert kind == "label_size"
    assert "90000 x 90000" in told
