"""Photos of a few bytes that would take gigabytes are refused before they are decoded."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data import photo
from pipeline.data.label_png import LabelError, read_values
from pipeline.data.photo import PhotoError, check_image, decode_photo, read_size_hw
from pipeline.data.semantic_fields import decode_plane, encode_plane

LIMIT = 10**6
SIDE = 30_000


def write_tiff(*sides: tuple[int, int, int]) -> bytes:
    """Write a TIFF of gray zeros, all strips of which are the same few bytes.

    Args:
        sides: tag, type and value of the entries for the size.
    """
    strips = SIDE // 100
    packed = zlib.compress(bytes(SIDE * 100))
    tags = 7 + len(sides)
    base = 8 + 2 + 12 * tags + 4
    entries = [
        *((tag, kind, 1, value) for tag, kind, value in sides),
        *((258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, strips, base)),
        *((277, 3, 1, 1), (278, 4, 1, 100), (279, 4, strips, base + 4 * strips)),
    ]
    offsets = [base + 8 * strips] * strips + [len(packed)] * strips
    return (
        struct.pack("<2sHIH", b"II", 42, 8, tags)
        + b"".join(struct.pack("<HHII", *each) for each in entries)
        + struct.pack(f"<I{len(offsets)}I", 0, *offsets)
        + packed
    )


def write_bmp(width: int, height: int, *, header_bytes: int = 40) -> bytes:
    header = struct.pack("<IiiHHIIiiII", header_bytes, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 200, 0, 0, 14 + header_bytes) + header + bytes(100)


BOMBS = {
    "TIFF": write_tiff((256, 4, SIDE), (257, 4, SIDE)),
    "TIFF with two sizes": write_tiff((256, 4, SIDE), (256, 4, 8), (257, 4, SIDE), (257, 4, 8)),
    "TIFF with signed sizes": write_tiff((256, 9, SIDE), (256, 4, 8), (257, 9, SIDE), (257, 4, 8)),
    "TIFF with a large tile": write_tiff((256, 4, 8), (257, 4, 8), (322, 4, SIDE), (323, 4, SIDE)),
    "BMP": write_bmp(SIDE, SIDE),
    "BMP from the top": write_bmp(SIDE, -SIDE),
    "BMP that Pillow does not read": write_bmp(SIDE, SIDE, header_bytes=36),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(monkeypatch, name: str):
    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(photo.cv2, "imdecode", decode)
    with pytest.raises(PhotoError, match=r"30000 x 30000 pixels, the limit is 1000000") as error:
        decode_photo(BOMBS[name], max_pixels=LIMIT)
    assert error.value.kind == "image_too_large"
    ((kind, _),) = check_image(BOMBS[name], None, max_pixels=LIMIT)
    assert kind == "image_too_large"


def lengthen(png: bytes, name: bytes) -> bytes:
    """Let a chunk claim 4 GB, as the decoder would reserve."""
    at = png.index(name)
    return png[: at - 4] + b"\xff\xff\x00\x00" + png[at:]


def test_a_chunk_that_claims_more_than_the_file_is_not_decoded(monkeypatch):
    pixels = np.zeros((24, 24, 3), np.uint8)
    data = lengthen(bytes(cv2.imencode(".png", pixels)[1]), b"IDAT")
    plane = lengthen(encode_plane(pixels[..., 0]), b"IDAT")
    monkeypatch.setattr(photo.cv2, "imdecode", None)  # a call would be a TypeError
    with pytest.raises(PhotoError, match="it is cut off after") as error:
        decode_photo(data, max_pixels=LIMIT)
    assert error.value.kind == "image_unreadable"
    assert decode_plane(plane) is None


@pytest.mark.parametrize("ending", [".bmp", ".tiff", ".webp"])
def test_sizes_are_those_of_the_decoded_photo(ending: str):
    pixels = np.random.default_rng(0).integers(0, 255, (19, 31, 3), dtype=np.uint8)
    data = bytes(cv2.imencode(ending, pixels)[1])
    assert read_size_hw(data) == (19, 31)
    assert decode_photo(data, max_pixels=LIMIT).pixels.shape == (19, 31, 3)


@pytest.mark.parametrize("kind", ["II", "MM", "big"])
def test_the_size_of_a_tiff_is_read_in_every_byte_order(kind: str):
    out = io.BytesIO()
    Image.new("RGB", (31, 19)).save(out, "TIFF", big_tiff=kind == "big")
    assert read_size_hw(write_big_endian() if kind == "MM" else out.getvalue()) == (19, 31)


def write_big_endian() -> bytes:
    """Write only what a size needs."""
    entries = [(256, 3, 1, 31 << 16), (257, 3, 1, 19 << 16)]
    return struct.pack(">2sHIH", b"MM", 42, 8, 2) + b"".join(
        struct.pack(">HHII", *each) for each in entries
    )


def test_a_label_with_a_second_header_is_refused():
    """Pillow would take the second one, and the rules were checked on the first."""

    def encode(side: int) -> bytes:
        out = io.BytesIO()
        Image.new("L", (side, side)).save(out, "PNG")
        return out.getvalue()

    small, large = encode(8), encode(500)
    data = small[:33] + large[8:]
    with pytest.raises(LabelError, match="it has a second header"):
        read_values(data, bits=8, max_pixels=100)
