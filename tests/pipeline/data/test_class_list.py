"""Lists of classes: any encoding of Windows, values as columns, and the rules of a list."""

import pytest

from pipeline.data.class_list import parse_class_list, read_class_list
from pipeline.data.text_files import decode_text, parse_json
from pipeline.errors import DatasetError

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_of_json_is_read_without_its_mark(tmp_path, encoding):
    text = "stra\u00dfe\r\nauto\r\n"
    (tmp_path / "classes.txt").write_bytes(text.encode(encoding))
    names = read_class_list(str(tmp_path / "classes.txt"))
    assert names == {0: "stra\u00dfe", 1: "auto"}
    assert decode_text(text.encode(encoding)) == text
    assert parse_json('["stra\u00dfe"]'.encode(encoding)) == ["stra\u00dfe"]


def test_another_encoding_is_an_error(tmp_path):
    (tmp_path / "classes.txt").write_bytes("stra\u00dfe\nauto\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"not a text in UTF-8 \(byte 4.*Save it as UTF-8"):
        read_class_list(str(tmp_path / "classes.txt"))


@pytest.mark.parametrize("between", [" ", "\t", ": ", ",", ", ", ";", " = "])
def test_values_are_a_column(between):
    lines = [f"0{between}road", "", f"12{between}a tall house "]
    assert parse_class_list(lines, where="x") == {0: "road", 12: "a tall house"}


def test_lines_without_values_count_from_0():
    lines = ["road", "__other__", "class 2", "3"]
    assert parse_class_list(lines, where="x") == dict(enumerate(lines))


def test_names_may_end_in_numbers_if_their_values_come_first():
    names = parse_class_list(["0 lane 1", "1 lane 2"], where="x")
    assert names == {0: "lane 1", 1: "lane 2"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["id,name", "0,road"], r"1 of 2 lines have no value, such as \['id,name'\]"),
        (["0 road", "car"], r"\['car'\]; give all lines one, or none"),
        (['["road", "car"]'], "is not a name"),
        (["- road", "- car"], r"\['- road'\] is not a name"),
        (["road", "\ufeffcar"], "is not a name"),
        (["0 road", "0 car"], "a value is used twice"),
        (["0 road", "1 road"], "a name is used twice"),
        ([], "it is empty"),
        (["road 0", "tall house: 1"], r"ends in a number, such as \['road 0'\]; put values first"),
    ],
)
def test_what_is_not_a_list_is_an_error_with_the_format(lines, message):
    with pytest.raises(DatasetError, match=rf"{message}.*NAME, or VALUE NAME"):
        parse_class_list(lines, where="classes.txt")


def test_json_that_is_nested_too_deeply_is_a_value_error():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b"[" * 100_000)
