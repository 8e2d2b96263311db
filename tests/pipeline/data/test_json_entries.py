"""A list that stays text reads as json.loads reads it, and takes the memory of its text."""

import codecs
import json
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.json_entries import (
    ChosenEntries,
    RepeatedKeyError,
    TextEntries,
    parse_unique,
)
from pipeline.data.sources.coco import read_annotations
from pipeline.errors import DatasetError

_TEXT = st.text(alphabet='a"\\{}[],: \n\u00e9\u2603\U0001f600\ud800', max_size=4)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


def parse(data: bytes, **defaults):
    return parse_unique(data, entries="annotations", defaults=defaults)


def to_plain(top):
    is_split = isinstance(top, dict) and isinstance(top.get("annotations"), TextEntries)
    return {**top, "annotations": list(top["annotations"])} if is_split else top


@given(
    top=st.dictionaries(st.sampled_from(["annotations", "images", ""]), _VALUES, max_size=3),
    indent=st.sampled_from([None, 2]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_every_json_reads_as_json_loads_reads_it(top, indent, encoding):
    data = json.dumps(top, indent=indent, ensure_ascii=False).encode(encoding, "surrogatepass")
    found = parse(data)
    assert to_plain(found) == top
    assert isinstance(top.get("annotations"), list) == isinstance(
        found.get("annotations"), TextEntries
    )


@pytest.mark.parametrize("text", ["[1]", " 3 ", "{}", ' {"annotations": [ ] } ', "null"])
def test_what_holds_no_entries_is_read_too(text):
    assert to_plain(parse(text.encode())) == json.loads(text)


@pytest.mark.parametrize("key", ["annotations", "images"])
def test_a_key_that_is_there_twice_is_refused(key):
    text = f'{{"{key}": [1, 2], "x": {{"a": 1, "a": 2}}, "{key}": [3]}}'
    with pytest.raises(RepeatedKeyError, match=f"it has the key '{key}' twice"):
        parse(text.encode())


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        (b'{"images": [{"id": 1', "it is truncated: copy it again"),
        (b'{"images": [{"id": "1', "it is truncated: copy it again"),
        (b'{"images": [1,]}', "correct it there, or write it again"),
        (b'{"images": []} x', "correct it there, or write it again"),
        (b'{"images": "\xe9t\xe9"}', "save it as UTF-8"),
    ],
)
def test_the_advice_fits_what_is_wrong(tmp_path, data, advice):
    file = tmp_path / "instances.json"
    file.write_bytes(data)
    with pytest.raises(DatasetError, match=rf"is not readable as JSON \(.*\); {advice}$"):
        read_annotations(str(file))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"annotations": [{"id": 1}',
        '{"annotations": [1,]}',
        '{"annotations": [1 2]}',
        '{"annotations": [1], }',
        '{"annotations" [1]}',
        '{"annotations": [1]} x',
        "{1: 2}",
        '{"annotations": [01]}',
        '{"a": "\n"}',
    ],
)
def test_the_error_of_what_is_no_json_is_that_of_json_loads(text):
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(json.JSONDecodeError, match=f"^{re.escape(str(expected.value))}$"):
        parse(text.encode())


def test_what_is_nested_too_deeply_is_refused_in_an_entry_too():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse(b'{"annotations": [' + b"[" * 10_000 + b"]" * 10_000 + b"]}")


def test_a_byte_order_mark_inside_is_text():
    text = '{"annotations": ["\ufeff"]}'
    assert list(parse(codecs.BOM_UTF8 + text.encode())["annotations"]) == ["\ufeff"]


def test_entries_get_the_defaults_that_they_lack():
    entries = parse(b'{"annotations": [{"a": 1}, {"iscrowd": 1}, 5]}', iscrowd=0)["annotations"]
    assert list(entries) == [{"a": 1, "iscrowd": 0}, {"iscrowd": 1}, 5]


def test_entries_are_sequences():
    entries = parse(b'{"annotations": [10, 11, 12, 13]}')["annotations"]
    assert (len(entries), entries[-1], list(entries[1:3])) == (4, 13, [11, 12])
    chosen = ChosenEntries(entries, [3, 1, 1])
    assert (list(chosen), list(chosen[1:]), 13 in chosen) == ([13, 11, 11], [11, 11], True)
    with pytest.raises(IndexError):
        entries[4]


def test_reading_annotations_takes_the_memory_of_their_text(tmp_path):
    polygon = [100 + number / 7 for number in range(400)]
    annotation = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 9, "iscrowd": 0}
    file = tmp_path / "instances.json"
    file.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg", "height": 90, "width": 90}],
                "categories": [{"id": 1, "name": "cat"}],
                "annotations": [
                    {**annotation, "id": number, "segmentation": [polygon]}
                    for number in range(2000)
                ],
            }
        )
    )
    tracemalloc.start()
    try:
        coco = read_annotations(str(file))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(coco.images[0]["annotations"]) == 2000
    # The bytes of the file and its text; all numbers at once would take as much as both again.
    assert peak < 2.2 * file.stat().st_size
