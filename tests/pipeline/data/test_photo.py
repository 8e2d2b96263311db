"""Ingest and training agree on every photo, and every change by the decoder is reported."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.data.photo import (
    MAX_PIXELS,
    PhotoError,
    check_image,
    decode_image,
    decode_photo,
    read_size_hw,
)
from pipeline.data.problems import KINDS
from pipeline.errors import DatasetError

NOISE = np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8)
PIXELS = cv2.resize(NOISE, (100, 80), interpolation=cv2.INTER_CUBIC)
PHOTO = Image.fromarray(PIXELS)
CLEAR = PHOTO.convert("RGBA")
CLEAR.putalpha(Image.fromarray(np.repeat(np.uint8([[0] * 25 + [255] * 75]), 80, axis=0)))


def encode(image: Image.Image, kind: str, *, two: bool = False, **options) -> bytes:
    out = io.BytesIO()
    if two:
        options |= {"save_all": True, "append_images": [image.rotate(90)]}
    # A copy: Pillow keeps settings of JPEG in the image.
    image.copy().save(out, format=kind, **options)
    return out.getvalue()


def encode_deep(channels: int, ending: str = ".png") -> bytes:
    """Encode 12 bits in 16."""
    deep = np.dstack([PIXELS, PIXELS[..., :1]]).astype(np.uint16) << 4
    deep = deep[..., 0] if channels == 1 else deep[..., :channels]
    return cv2.imencode(ending, deep)[1].tobytes()


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    header = struct.pack(">BBH", 0xFF, marker, len(content) + 2)
    return jpeg[:2] + header + content + jpeg[2:]


def with_wrong_checksum(png: bytes, chunk: bytes) -> bytes:
    broken = bytearray(png)
    start = png.index(chunk)
    broken[start + 4 + int.from_bytes(png[start - 4 : start], "big")] ^= 1
    return bytes(broken)


JPEG, PNG = encode(PHOTO, "JPEG"), encode(PHOTO, "PNG")
TEXT = PngImagePlugin.PngInfo()
TEXT.add_text("parameters", "x" * 2_000_000, zip=True)
WITH_TEXT = encode(PHOTO, "PNG", pnginfo=TEXT)
EXIF = Image.Exif()
EXIF[0x0112] = 6

SOUND = {
    "jpeg": (JPEG, {}),
    "jpeg, gray": (encode(PHOTO.convert("L"), "JPEG"), {}),
    "jpeg, progressive": (encode(PHOTO, "JPEG", progressive=True), {}),
    "jpeg, bytes after its end": (JPEG + b"\0" * 50, {}),
    "jpeg, broken exif": (with_segment(JPEG, 0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"), {}),
    "jpeg, broken comment of photoshop": (
        with_segment(JPEG, 0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff"),
        {},
    ),
    "jpeg, turned": (encode(PHOTO, "JPEG", exif=EXIF), {"image_turned": "EXIF orientation 6"}),
    "jpeg, cmyk": (encode(PHOTO.convert("CMYK"), "JPEG"), {"image_cmyk": "4 channels become 3"}),
    "mpo of a phone": (
        encode(PHOTO, "MPO", two=True),
        {"image_pictures": "the first of 2 is taken"},
    ),
    "png": (PNG, {}),
    "png, gray": (encode(PHOTO.convert("L"), "PNG"), {}),
    "png, 1 bit": (encode(PHOTO.convert("1"), "PNG"), {}),
    "png, large text": (WITH_TEXT, {}),
    "png, wrong checksum of text": (with_wrong_checksum(WITH_TEXT, b"zTXt"), {}),
    "png, turned": (encode(PHOTO, "PNG", exif=EXIF), {"image_turned": "EXIF orientation 6"}),
    "png, palette": (encode(PHOTO.quantize(16), "PNG"), {"image_palette": "16 colors"}),
    "png, alpha": (encode(CLEAR, "PNG"), {"image_alpha": "25 % of the pixels are not opaque"}),
    "png, gray and alpha": (encode(CLEAR.convert("LA"), "PNG"), {"image_alpha": "25 %"}),
    "png, opaque": (encode(PHOTO.convert("RGBA"), "PNG"), {}),
    "png, 12 bits in 16": (
        encode_deep(1),
        {"image_bits": f"up to {16 * int(PIXELS[..., 0].max())} become values up to"},
    ),
    "png, 16 bits with alpha": (
        encode_deep(4),
        {"image_bits": "values up", "image_alpha": "100 %"},
    ),
    "webp": (encode(PHOTO, "WEBP"), {}),
    "webp, alpha": (encode(CLEAR, "WEBP", lossless=True), {"image_alpha": "25 %"}),
    "webp, animated": (encode(PHOTO, "WEBP", two=True), {"image_pictures": "the first of 2"}),
    "tiff": (encode(PHOTO, "TIFF"), {}),
    "tiff, lzw": (encode(PHOTO, "TIFF", compression="tiff_lzw"), {}),
    "tiff, pages": (encode(PHOTO, "TIFF", two=True), {"image_pictures": "the first of 2 is taken"}),
    "tiff, 16 bits": (encode_deep(3, ".tif"), {"image_bits": "values up to"}),
    "bmp": (encode(PHOTO, "BMP"), {}),
    "bmp, palette": (encode(PHOTO.quantize(16), "BMP"), {"image_palette": "colors of the palette"}),
}

BROKEN = {
    "empty": (b"", "image_unreadable", "the file is empty"),
    "html": (b"<!DOCTYPE html><html>", "image_format", "it is a web page"),
    "text": (b"a few words", "image_format", "it starts with b'a few wo'"),
    "gif": (encode(PHOTO, "GIF"), "image_format", "it is GIF, not JPEG, PNG, WebP"),
    "jpeg, cut": (JPEG[:800], "image_unreadable", "truncated"),
    "jpeg, header only": (JPEG[:3], "image_unreadable", "its header is broken"),
    "png, wrong checksum": (
        with_wrong_checksum(PNG, b"IDAT"),
        "image_unreadable",
        "the checksum of chunk b'IDAT' is wrong",
    ),
    "png, without its end": (PNG[:-12], "image_unreadable", "it is cut off after"),
    "png, signature only": (PNG[:8], "image_unreadable", "it is cut off after 8 bytes"),
    "webp, cut": (encode(PHOTO, "WEBP")[:500], "image_unreadable", ""),
    "tiff, cut": (encode(PHOTO, "TIFF")[:500], "image_unreadable", ""),
    "bmp, cut": (encode(PHOTO, "BMP")[:500], "image_unreadable", "truncated"),
    "tiff, 32-bit numbers": (
        encode(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF"),
        "image_unreadable",
        "OpenCV does not read this kind of TIFF (pixels of type F)",
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_ingest_takes_what_training_decodes_and_reports_what_it_changes(name):
    data, notices = SOUND[name]
    found = dict(check_image(data, (80, 100), max_pixels=8000))
    assert found.keys() == notices.keys()
    for kind, reason in notices.items():
        assert KINDS[kind][0] == "notice"
        assert reason in found[kind]
    np.testing.assert_array_equal(decode_photo(data).pixels, decode_image(data, name="x"))
    assert read_size_hw(data) == (80, 100)


@pytest.mark.parametrize("name", BROKEN)
def test_what_training_cannot_decode_is_refused_with_the_reason(name):
    data, kind, reason = BROKEN[name]
    (found,) = check_image(data, (80, 100), max_pixels=8000)
    assert found[0] == kind
    assert reason in found[1]
    assert "BytesIO" not in found[1]
    if kind == "image_unreadable":
        with pytest.raises(DatasetError, match=r"x cannot be decoded as an image \(\d+ bytes\)"):
            decode_image(data, name="x")


def find_in_whole(data: bytes) -> tuple[tuple[int, int] | None, list[tuple[str, str]]]:
    """Decode all pixels; return the size, and the problem or the notices."""
    try:
        photo = decode_photo(data, max_pixels=8000)
    except PhotoError as error:
        return None, [(error.kind, str(error))]
    return photo.pixels.shape[:2], photo.notices


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_checking_a_jpeg_finds_what_decoding_finds(mode, progressive):
    whole = encode(Image.fromarray(PIXELS).convert(mode), "JPEG", progressive=progressive)
    g = np.random.default_rng(0)
    broken = 0
    for number in range(60):
        data = bytearray(whole)
        at = int(g.integers(2, len(data)))
        if number % 3 == 0:
            data = data[:at]
        elif number % 3 == 1:
            data[at] = int(g.integers(0, 256))
        else:  # in the header
            data[at % 600] = int(g.integers(0, 256))
        size_hw, found = find_in_whole(bytes(data))
        assert check_image(bytes(data), size_hw, max_pixels=8000) == found
        broken += size_hw is None
    assert 5 < broken < 55


def test_existing_photos_keep_their_pixels():
    np.testing.assert_array_equal(decode_photo(PNG).pixels, PIXELS)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    expected = cv2.imdecode(np.frombuffer(JPEG, np.uint8), flags)
    np.testing.assert_array_equal(decode_photo(JPEG).pixels, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_the_size_is_checked_before_pixels_are_decoded(kind):
    data = encode(PHOTO, kind)
    reason = "100 x 80 pixels, the limit is 7999"
    assert check_image(data, None, max_pixels=7999) == [("image_too_large", reason)]
    assert check_image(data, (100, 80), max_pixels=8000) == [
        ("image_size", "100 x 80 in the file, 80 x 100 in the annotations")
    ]


def test_a_size_beyond_the_decoders_own_limit_is_an_error_with_the_name():
    header = bytearray(PNG)
    header[16:24] = struct.pack(">II", 200_000, 200_000)
    with pytest.raises(PhotoError, match="200000 x 200000 pixels, the limit is 178956970"):
        decode_photo(bytes(header), max_pixels=2 * MAX_PIXELS)
    with pytest.raises(DatasetError, match="x cannot be decoded"):
        decode_image(bytes(header), name="x")
