import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.data.dataset_files import (
    Files,
    find_file,
    find_folder,
    is_there,
    leaves_folder,
    list_files,
    read_file,
)
from pipeline.errors import StorageError


def archive(place, files: dict[str, bytes], **options) -> str:
    with zipfile.ZipFile(place, "w", **options) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return str(place)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a" / "train").mkdir(parents=True)
    (tmp_path / "a" / "train" / "1.txt").write_bytes(b"one")
    files = {"b/train/x/1.txt": b"first", "b/train/2.txt": b"second", "b/val/3.txt": b"3"}
    archive(tmp_path / "b.zip", files, compression=zipfile.ZIP_DEFLATED)
    return tmp_path


def test_folders_are_found_unpacked_and_in_zips(root):
    assert find_folder(str(root), "c", "a/train") == str(root / "a" / "train")
    inside = find_folder(str(root), "c", "b/train")
    assert inside == f"{root}/b.zip!/b/train"
    assert find_folder(str(root), "b/test", "b/tr") is None
    assert find_file(str(root), "a/train/1.txt") == f"{root}/a/train/1.txt"
    assert find_file(str(root), "b/val/3.txt") == f"{root}/b.zip!/b/val/3.txt"
    assert find_file(str(root), "b/val/4.txt") is None
    assert is_there(inside)
    assert not is_there(f"{root}/b.zip!/b/test")
    assert not is_there(f"{root}/c.zip!/b")


def test_files_are_listed_with_their_sizes_and_read(root):
    inside = f"{root}/b.zip!/b/train"
    assert list_files(str(root / "a")) == {"train/1.txt": 3}
    assert list_files(inside) == {"2.txt": 6, "x/1.txt": 5}
    assert list_files(inside, recursive=False) == {"2.txt": 6}
    assert list_files(str(root / "nowhere")) == {}
    assert read_file(f"{inside}/x/1.txt") == b"first"
    with Files() as files:
        assert files.read(inside, "x/1.txt", most_bytes=99).data == b"first"
        assert files.read(inside, "x/1.txt", most_bytes=2).data == b"fi"
        assert files.read(str(root / "a"), "train/1.txt", most_bytes=99).data == b"one"
        for mount, name in ((inside, "x/9.txt"), (str(root / "a"), "9"), (str(root), "a")):
            assert files.read(mount, name, most_bytes=99) == (None, "")


def test_threads_may_read_from_one_zip(tmp_path):
    files = {f"f/{number}": bytes([number]) * 5000 for number in range(100)}
    place = archive(tmp_path / "f.zip", files, compression=zipfile.ZIP_DEFLATED)
    with Files() as reader, ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda n: reader.read(f"{place}!/f", str(n), most_bytes=9999), range(100))
        )
    assert [each.data for each in found] == list(files.values())


def test_a_download_that_was_cut_off_says_so(root):
    place = root / "b.zip"
    place.write_bytes(place.read_bytes()[:-30])
    with pytest.raises(StorageError, match=r"b\.zip is no whole zip .* Download it again"):
        find_folder(str(root), "b/train")
    # What is there beside it can be used.
    archive(root / "whole.zip", {"b/train/1.txt": b"again"})
    assert find_folder(str(root), "b/train") == f"{root}/whole.zip!/b/train"
    (root / "whole.zip").write_bytes(b"")
    with pytest.raises(StorageError, match=r"b\.zip is no whole zip"):
        find_folder(str(root), "b/train")


def test_a_damaged_member_is_told_and_not_taken_for_a_missing_one(root):
    place = root / "b.zip"
    archive(place, {"b/train/1.txt": b"hundred bytes" * 8})
    data = bytearray(place.read_bytes())
    data[data.index(b"hundred") + 3] ^= 1
    place.write_bytes(data)
    with Files() as files:
        found = files.read(f"{place}!/b/train", "1.txt", most_bytes=10**6)
    assert found.data is None
    assert "CRC" in found.fault
    assert "b.zip" in found.fault
    with pytest.raises(StorageError, match="CRC"):
        read_file(f"{place}!/b/train/1.txt")


@pytest.mark.parametrize("name", ["../x.txt", "/etc/passwd", "a/../../x", "C:/x.txt"])
def test_an_archive_whose_names_lead_out_of_it_is_refused(tmp_path, name):
    assert leaves_folder(name)
    archive(tmp_path / "evil.zip", {"a/ok.txt": b"", name: b"x"})
    with pytest.raises(StorageError, match=r"1 names that lead out of its folder"):
        find_folder(str(tmp_path), "a")


def test_names_are_no_queries(tmp_path):
    (tmp_path / "odd?x=1#y.txt").write_bytes(b"odd")
    with Files() as files:
        assert files.read(str(tmp_path), "odd?x=1#y.txt", most_bytes=9).data == b"odd"
