import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.data.dataset_files import (
    FileReader,
    describe_unsafe_name,
    escapes_folder,
    exists,
    find_file,
    find_folder,
    list_files,
    read_file,
)
from pipeline.errors import StorageError


def archive(path, files: dict[str, bytes], **options) -> str:
    with zipfile.ZipFile(path, "w", **options) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return str(path)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "a" / "train").mkdir(parents=True)
    (tmp_path / "a" / "train" / "1.txt").write_bytes(b"one")
    files = {"b/train/x/1.txt": b"first", "b/train/2.txt": b"second", "b/val/3.txt": b"3"}
    archive(tmp_path / "b.zip", files, compression=zipfile.ZIP_DEFLATED)
    return tmp_path


def test_finds_folders_unpacked_and_in_zips(root):
    assert find_folder(str(root), "c", "a/train") == str(root / "a" / "train")
    inside = find_folder(str(root), "c", "b/train")
    assert inside == f"{root}/b.zip!/b/train"
    assert find_folder(str(root), "b/test", "b/tr") is None
    assert find_file(str(root), "a/train/1.txt") == f"{root}/a/train/1.txt"
    assert find_file(str(root), "b/val/3.txt") == f"{root}/b.zip!/b/val/3.txt"
    assert find_file(str(root), "b/val/4.txt") is None
    assert exists(inside)
    assert not exists(f"{root}/b.zip!/b/test")
    assert not exists(f"{root}/c.zip!/b")


def test_lists_files_with_their_sizes_and_reads_them(root):
    inside = f"{root}/b.zip!/b/train"
    assert list_files(str(root / "a")) == {"train/1.txt": 3}
    assert list_files(inside) == {"2.txt": 6, "x/1.txt": 5}
    assert list_files(inside, recursive=False) == {"2.txt": 6}
    assert list_files(str(root / "nowhere")) == {}
    assert read_file(f"{inside}/x/1.txt") == b"first"
    with FileReader() as reader:
        assert reader.read(inside, "x/1.txt", max_bytes=99).data == b"first"
        assert reader.read(inside, "x/1.txt", max_bytes=2).data == b"fi"
        assert reader.read(str(root / "a"), "train/1.txt", max_bytes=99).data == b"one"
        for mount, name in ((inside, "x/9.txt"), (str(root / "a"), "9"), (str(root), "a")):
            assert reader.read(mount, name, max_bytes=99) == (None, "")


def test_threads_can_share_one_zip(tmp_path):
    files = {f"f/{number}": bytes([number]) * 5000 for number in range(100)}
    path = archive(tmp_path / "f.zip", files, compression=zipfile.ZIP_DEFLATED)
    with FileReader() as reader, ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda n: reader.read(f"{path}!/f", str(n), max_bytes=9999), range(100))
        )
    assert [each.data for each in found] == list(files.values())


def test_reports_a_truncated_download(root):
    path = root / "b.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(StorageError, match=r"b\.zip is not a complete zip .* Download it again"):
        find_folder(str(root), "b/train")
    # An intact zip next to it can be used.
    archive(root / "whole.zip", {"b/train/1.txt": b"again"})
    assert find_folder(str(root), "b/train") == f"{root}/whole.zip!/b/train"
    (root / "whole.zip").write_bytes(b"")
    with pytest.raises(StorageError, match=r"b\.zip is not a complete zip"):
        find_folder(str(root), "b/train")


def test_reports_a_damaged_member_not_a_missing_one(root):
    path = root / "b.zip"
    archive(path, {"b/train/1.txt": b"hundred bytes" * 8})
    data = bytearray(path.read_bytes())
    data[data.index(b"hundred") + 3] ^= 1
    path.write_bytes(data)
    with FileReader() as reader:
        found = reader.read(f"{path}!/b/train", "1.txt", max_bytes=10**6)
    assert found.data is None
    assert "CRC" in found.error
    assert "b.zip" in found.error
    with pytest.raises(StorageError, match="CRC"):
        read_file(f"{path}!/b/train/1.txt")


@pytest.mark.parametrize("name", ["../x.txt", "/etc/passwd", "a/../../x", "C:/x.txt"])
def test_refuses_an_archive_whose_names_escape_it(tmp_path, name):
    assert escapes_folder(name)
    archive(tmp_path / "evil.zip", {"a/ok.txt": b"", name: b"x"})
    with pytest.raises(StorageError, match=r"names that point out of its folder .1, "):
        find_folder(str(tmp_path), "a")


def test_a_backslash_is_not_called_an_escape(tmp_path):
    assert describe_unsafe_name(r"JPEGImages\1.jpg") == (
        "it has a backslash, as on Windows; write 'JPEGImages/1.jpg'"
    )
    assert "'..'" in describe_unsafe_name(r"a\..\..\1.jpg")
    assert "starts with 'C:'" in describe_unsafe_name(r"C:\1.jpg")
    assert describe_unsafe_name("JPEGImages/1.jpg") == ""
    archive(tmp_path / "windows.zip", {"a/1.txt": b"1", r"a\2.txt": b"2"})
    with pytest.raises(StorageError, match=r"holds 1 names with a backslash.*zip it again"):
        find_folder(str(tmp_path), "a")


def test_names_are_not_parsed_as_queries(tmp_path):
    (tmp_path / "odd?x=1#y.txt").write_bytes(b"odd")
    with FileReader() as reader:
        assert reader.read(str(tmp_path), "odd?x=1#y.txt", max_bytes=9).data == b"odd"


def test_a_member_outside_of_the_archive_is_a_storage_error(tmp_path):
    path = archive(tmp_path / "f.zip", {"a": b"one"})
    data = bytearray((tmp_path / "f.zip").read_bytes())
    at = data.index(b"PK\x01\x02") + 42
    data[at : at + 4] = b"\xff\xff\xff\x7f"  # the offset of its data
    (tmp_path / "f.zip").write_bytes(data)
    with pytest.raises(StorageError, match=r"cannot read a in .*f\.zip"):
        read_file(f"{path}!/a")
    with FileReader() as reader:
        assert reader.read(f"{path}!", "a", max_bytes=9).error


def test_a_bomb_of_a_file_that_is_read_whole_is_refused_before_it_is_unpacked(tmp_path):
    bomb = {"a.json": bytes(70_000_000)}
    path = archive(tmp_path / "f.zip", bomb, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(
        StorageError, match=r"would unpack to 70000000 bytes from \d+, more than 100"
    ):
        read_file(f"{path}!/a.json")


def test_links_in_a_zip_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    member = zipfile.ZipInfo("a")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as out:
        out.writestr(member, str(tmp_path / "secret"))
    with FileReader() as reader:
        found = reader.read(f"{tmp_path}/f.zip!", "a", max_bytes=999)
    assert found.data == str(tmp_path / "secret").encode()


def test_a_member_without_a_name_is_listed_as_it_is(tmp_path):
    path = archive(tmp_path / "f.zip", {"a": b"22", "b": b"1"})
    data = bytearray((tmp_path / "f.zip").read_bytes())
    at = data.rindex(b"PK\x01\x02") + 28
    data[at : at + 4] = b"\0\0\1\0"  # a name of no byte, and one byte more of other fields
    (tmp_path / "f.zip").write_bytes(data)
    assert list_files(f"{path}!") == {"": 1, "a": 2}
