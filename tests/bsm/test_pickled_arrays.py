"""Pickles as detectron2 writes them, and some that must not run."""

import codecs
import collections
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch

from bsm.checkpoints.weights import read_weights

ARRAYS = {
    "float": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "view": np.arange(10, dtype=np.int64)[::2],
    "half": np.ones((2, 1), dtype=np.float16),
    "bytes": np.array([0, 128, 255], dtype=np.uint8),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "number": np.float32(2.5),
}
ZOO = {"model": ARRAYS, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}


def write_pickle(folder: Path, content: object, *, protocol: int = 2) -> Path:
    path = folder / "w.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("wrap", ["zoo", "ordered", "blobs"])
def test_arrays_are_read_as_they_were(tmp_path, protocol: int, wrap: str):
    content = {
        "zoo": ZOO,
        "ordered": collections.OrderedDict(ARRAYS),
        "blobs": {"blobs": ARRAYS, "cfg": "MODEL:\n"},
    }[wrap]
    tensors = read_weights(write_pickle(tmp_path, content, protocol=protocol))
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        expected = torch.from_numpy(np.asarray(array).copy())
        assert tensors[name].dtype == expected.dtype
        assert torch.equal(tensors[name], expected), name


def test_a_file_of_python_2_is_read(tmp_path):
    """Python 2 wrote bytes as text: opcode BINSTRING, numpy's name before 2."""
    values = np.array([1.5, -2.0, 1e-3], dtype=np.float32)
    data = values.tobytes()
    program = (
        b"\x80\x02}U\x07conv1_w"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x03\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(data).to_bytes(4, "little")
        + data
        + b"tbs."
    )
    pickletools.dis(program, out=(tmp_path / "listing").open("w"))  # a well-formed program
    path = tmp_path / "R-50.pkl"
    path.write_bytes(program)
    assert torch.equal(read_weights(path)["conv1_w"], torch.from_numpy(values))
    assert np.array_equal(pickle.loads(program, encoding="latin1")["conv1_w"], values)  # noqa: S301


class Calls:
    """In a pickle, it is a call that runs while the file is read."""

    def __init__(self, call, *arguments) -> None:
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_malicious_pickle_does_nothing_and_raises(tmp_path, protocol: int):
    trap = tmp_path / "trap"
    evil = {"model": {"conv1_w": ARRAYS["float"], "x": Calls(os.mkdir, str(trap))}}
    path = write_pickle(tmp_path, evil, protocol=protocol)
    with pytest.raises(ValueError, match=r"asks for \w+\.mkdir") as error:
        read_weights(path)
    for part in ("w.pkl", "nothing in it is executed", "save_file"):
        assert part in str(error.value)
    assert not trap.exists()
    pickle.loads(path.read_bytes())  # noqa: S301  it would have done harm
    assert trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": Calls(eval, "1")}, "asks for __builtin__.eval"),
        ({"w": Calls(os.system, "true")}, "asks for posix.system"),
        ({"w": Calls(np.load, "x")}, "numpy"),
        ({"w": torch.zeros(2)}, "torch"),
        ({"w": np.array([None, {}], dtype=object)}, "without a shape, dtype or bytes"),
        ({"w": np.zeros(2, dtype=">f4")}, "dtype >f4"),
        ({"w": np.zeros(2, dtype=[("a", "f4")])}, "dtype"),
        ({"w": np.array(["a"])}, "dtype <U1"),
    ],
)
def test_other_content_than_plain_arrays_raises(tmp_path, content: object, message: str):
    with pytest.raises(ValueError, match="only plain containers of numpy arrays") as error:
        read_weights(write_pickle(tmp_path, content))
    assert message in str(error.value)


def test_an_array_with_a_wrong_size_raises(tmp_path):
    """numpy would trust the size and read memory beyond the array."""
    path = write_pickle(tmp_path, {"w": np.zeros(3, dtype=np.float32)})
    program = path.read_bytes()
    assert program.count(b"K\x03\x85") == 1  # the shape (3,)
    path.write_bytes(program.replace(b"K\x03\x85", b"K\x30\x85"))
    with pytest.raises(ValueError, match=r"shape \(48,\), dtype <f4 and 12 bytes"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}", b"\x80\x02(lp0\nh\x00a."])
def test_a_truncated_pickle_raises(tmp_path, content: bytes):
    path = tmp_path / "torn.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"torn\.pkl"):
        read_weights(path)


def test_files_of_torch_save_are_read_under_any_name(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "model.pkl")
    assert torch.equal(read_weights(tmp_path / "model.pkl")["a"], torch.ones(2))


def make_laughs() -> object:
    """Return lists in lists, each used twice: 2 ** 40 texts in a few hundred bytes."""
    value: list = ["x"]
    for _ in range(40):
        value = [value] * 2
    return value


RAW = bytes(5000)
TEXT = "x" * 5000


def repeat_call(call, *arguments) -> list:
    return [Calls(call, *arguments) for _ in range(50)]


REPEATED = {
    "arrays": (4, repeat_call(np._core.numeric._frombuffer, RAW, np.dtype("u1"), (5000,), "C")),
    "texts": (2, repeat_call(codecs.encode, TEXT, "latin1")),
    "dicts": (2, repeat_call(collections.OrderedDict, [(i, i) for i in range(5000)])),
}


@pytest.mark.parametrize("name", REPEATED)
def test_content_that_is_repeated_to_more_than_the_file_raises(tmp_path, name: str):
    protocol, content = REPEATED[name]
    with pytest.raises(ValueError, match="it repeats its content, to more than the") as error:
        read_weights(write_pickle(tmp_path, {"w": content}, protocol=protocol))
    assert "w.pkl" in str(error.value)


@pytest.mark.timeout(20)
def test_an_object_that_is_used_often_is_converted_once(tmp_path):
    path = write_pickle(tmp_path, {"w": make_laughs()})
    with pytest.raises(ValueError, match="does not map names to tensors"):
        read_weights(path)
    array = ARRAYS["float"]
    tensors = read_weights(write_pickle(tmp_path, {"a": array, "b": array}))
    assert torch.equal(tensors["a"], tensors["b"])


@pytest.mark.parametrize("content", [b"\x80\x02Nr\xff\xff\xff\x0f.", b"Np99999999\n."])
def test_a_position_beyond_the_file_raises_before_memory_is_taken(tmp_path, content: bytes):
    path = tmp_path / "w.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="it stores an object at position"):
        read_weights(path)
