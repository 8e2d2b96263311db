import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bsm.checkpoints.weights import load_weights, read_weights, save_weights


def model(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "wrapped.pth"])
def test_round_trip(tmp_path, name: str):
    a, b = model(), model()
    path = tmp_path / name
    if name == "w.safetensors":
        save_weights(a, path)
    elif name == "w.pth":
        torch.save(a.state_dict(), path)
    else:
        state = {f"module.{key}": value for key, value in a.state_dict().items()}
        torch.save({"model": state, "epoch": 3}, path)
    load_weights(b, path)
    for key, value in a.state_dict().items():
        assert torch.equal(b.state_dict()[key], value)


def test_tensors_that_changed_after_they_were_saved_raise(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(model(), path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.safetensors: the tensors were changed after"):
        load_weights(model(), path)


def test_every_difference_is_listed_and_nothing_is_loaded(tmp_path):
    a, b = model(), model()
    state = a.state_dict()
    del state["0.bias"], state["1.weight"]
    state["1.running_mean"] = torch.zeros(9)
    state |= {"fc.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}
    save_file(state, tmp_path / "w.safetensors")
    before = {key: value.clone() for key, value in b.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit") as error:
        load_weights(b, tmp_path / "w.safetensors")
    for part in (
        "2 missing: 0.bias, 1.weight",
        "2 unexpected: fc.bias, fc.weight",
        "1.running_mean is (9,), the model has (4,)",
        "w.safetensors",
    ):
        assert part in str(error.value)
    for key, value in before.items():
        assert torch.equal(b.state_dict()[key], value)


def test_code_in_a_file_is_not_executed(tmp_path, recwarn):
    trap = tmp_path / "trap"

    class Evil:
        def __reduce__(self):
            return (trap.mkdir, ())

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil()))
    message = "it is a Python pickle with other content. .*nothing in a file is executed"
    with pytest.raises(ValueError, match=message) as error:
        load_weights(model(), path)
    assert not recwarn.list, "torch asks to report an issue"
    for advice in ("weights_only", "torch.load", "trust the source"):
        assert advice not in str(error.value)
    torch.save({"a": Evil()}, path)
    with pytest.raises(ValueError, match=r"it asks for .*nothing in a file is executed"):
        load_weights(model(), path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "no such file"),
        ("torn.safetensors", b"\x00" * 20, "not a plain file of tensors"),
        ("torn.pth", b"hello", "not a plain file of tensors"),
        ("empty.pth", b"", "not a plain file of tensors: it is empty"),
        (
            "lfs.pth",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 178\n",
            "a pointer of Git LFS, without the content; type: git lfs pull",
        ),
        ("annex.safetensors", b"/annex/objects/MD5E-s1--00.pth\n", "type: git annex get"),
        ("page.pth", b"\n<!DOCTYPE html>\n<html>", r"it is a web page \('<!DOCTYPE html>'\)"),
        ("page.safetensors", b"<html><title>Sign in</title>", "download the file itself"),
        ("packed.pth", b"\x1f\x8b\x08\x00", "it is a gzip archive; unpack it first"),
        ("torn.pth", b"PK\x03\x04\x00\x00", "cut off or damaged"),
        ("text.pkl", b"hello", "it starts with b'hello'"),
    ],
)
def test_files_without_weights_raise(tmp_path, name: str, content: bytes | None, message: str):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_weights(model(), path)
    assert name in str(error.value)


def test_a_file_with_other_content_raises(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "w.pth")
    with pytest.raises(ValueError, match="does not map names to tensors"):
        load_weights(model(), tmp_path / "w.pth")


def test_weights_that_are_not_finite_raise_and_are_named(tmp_path):
    a, b = model(), model()
    state = a.state_dict()
    state["0.weight"][0] = torch.nan
    state["1.running_var"][1] = torch.inf
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="hold NaN or infinity") as error:
        load_weights(b, tmp_path / "w.safetensors")
    assert "w.safetensors: 2 of 7 tensors" in str(error.value)
    assert "0.weight, 1.running_var. Nothing was loaded" in str(error.value)
    assert all(value.isfinite().all() for value in b.state_dict().values())


def test_a_zip_that_unpacks_to_more_than_its_size_raises_before_it_is_read(tmp_path):
    torch.save({"a": torch.zeros(10**5)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as plain,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    with pytest.raises(ValueError, match=r"b\.pth: its content would unpack to 4\d{5} bytes"):
        read_weights(tmp_path / "b.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(3, 3).to_sparse(),
        torch.zeros(10**6, 10**6, device="meta"),
    ],
    ids=["expanded", "sparse", "meta"],
)
def test_tensors_without_a_number_for_each_value_raise(tmp_path, value):
    torch.save({"fine": torch.zeros(2), "odd": value}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: 1 of 2 tensors .*: odd\. Save dense"):
        read_weights(tmp_path / "w.pth")
