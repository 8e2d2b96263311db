"""Pointers and web pages in the place of a data set's files are called what they are."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bsm.checkpoints.foreign_files import describe_foreign_file
from pipeline.data.dataset_files import find_folder
from pipeline.data.label_png import read_values
from pipeline.data.manifest import read_manifest
from pipeline.data.photo import decode_photo
from pipeline.data.sources.coco import read_lists
from pipeline.evaluation.coco_files import read_json

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 178\n"


def _write(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


@pytest.mark.parametrize(
    "read",
    [
        lambda folder, data: decode_photo(data),
        lambda folder, data: read_values(data, bits=8, max_pixels=None),
        lambda folder, data: read_lists(_write(folder, "instances.json", data)),
        lambda folder, data: read_json(_write(folder, "detections.json", data)),
        lambda folder, data: (_write(folder, "dataset.json", data), read_manifest(str(folder))),
        lambda folder, data: (_write(folder, "train.zip", data), find_folder(str(folder), "train")),
    ],
    ids=["photo", "label", "annotations", "results", "manifest", "zip"],
)
@pytest.mark.parametrize(
    ("data", "says"),
    [(POINTER, "type: git lfs pull"), (b"<!doctype html>", "download the file itself")],
)
def test_every_reader_says_what_is_there(
    tmp_path: Path, read: Callable[[Path, bytes], object], data: bytes, says: str
) -> None:
    with pytest.raises(Exception, match=says):
        read(tmp_path, data)


@pytest.mark.parametrize("data", [b"\xff\xd8\xff", b"\x89PNG", b"{}", b" [1]", b"hello", b"PK\3\4"])
def test_other_content_is_left_to_its_reader(data: bytes) -> None:
    assert describe_foreign_file(data) == ""


def test_json_that_is_cut_off_keeps_its_own_reason(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="line 1 column"):
        read_json(_write(tmp_path, "cut.json", json.dumps([1, 2]).encode()[:-1]))
