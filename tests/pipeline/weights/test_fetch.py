"""Published weights arrive whole and checked, or not at all: from a server, a mirror, the cache."""

import hashlib
import threading
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import RecipeError, StorageError
from pipeline.weights import download, fetch
from pipeline.weights.fetch import fetch_weights, to_absolute_mirror
from pipeline.weights.names import WeightsFile, find_file
from tests.pipeline.weights.web import Site, serve

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = "torchvision:Some_Weights.COCO_V1"
FILE = f"models/some-{DIGEST[:8]}.pth"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The only publisher, with a file whose name has its checksum."""
    monkeypatch.setenv(fetch.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(fetch.MIRROR_VARIABLE, raising=False)
    monkeypatch.setattr(download, "_WAIT_S", 0.0)
    with serve(CONTENT) as site:
        publish(site, monkeypatch)
        yield site


def publish(site: Site, monkeypatch, *, sha256: str = DIGEST[:8]) -> None:
    file = WeightsFile(name=NAME, url=f"{site.url}/{FILE}", sha256_prefix=sha256)
    monkeypatch.setattr(fetch, "find_file", lambda _: file)


def cached(site: Site, tmp_path: Path) -> Path:
    return tmp_path / "cache" / site.url.removeprefix("http://") / FILE


def test_a_file_is_downloaded_once_and_kept_under_the_path_of_its_url(site, tmp_path, caplog):
    caplog.set_level("INFO")
    path = fetch_weights(NAME)
    assert path == cached(site, tmp_path)
    assert path.read_bytes() == CONTENT
    assert (path.parent / "SHA256SUMS").read_text() == f"{DIGEST}  {path.name}\n"
    assert sorted(each.name for each in path.parent.iterdir()) == ["SHA256SUMS", path.name]
    assert f"download {path.name} 0.3/0.3 MB" in caplog.text
    assert fetch_weights(NAME) == path
    assert site.requests == [(f"/{FILE}", "")]


def test_a_broken_download_goes_on_where_it_stopped(site):
    site.break_after = [1000, 70_000]
    assert fetch_weights(NAME).read_bytes() == CONTENT
    assert [part for _, part in site.requests] == ["", "bytes=1000-", "bytes=71000-"]


def test_a_later_command_goes_on_too(site, tmp_path):
    site.break_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(StorageError, match=r"broke off 5 times at 0\.1 MB") as caught:
        fetch_weights(NAME)
    assert "the same command goes on from there" in str(caught.value)
    assert not cached(site, tmp_path).exists()
    site.requests.clear()
    assert fetch_weights(NAME).read_bytes() == CONTENT
    assert site.requests == [(f"/{FILE}", "bytes=100000-")]


@pytest.mark.parametrize("change", ["another version", "no parts"])
def test_parts_that_do_not_fit_together_are_not_joined(site, change):
    site.break_after = [100_000]
    if change == "no parts":
        site.knows_parts = False
    else:
        answer = site.answer

        def answer_newer(handler) -> None:
            answer(handler)
            site.etag = '"2"'

        site.answer = answer_newer
    assert fetch_weights(NAME).read_bytes() == CONTENT


def test_a_part_that_is_complete_already_is_only_checked(site, tmp_path):
    part = cached(site, tmp_path)
    part.parent.mkdir(parents=True)
    part.with_name(f"{part.name}.part").write_bytes(CONTENT)
    part.with_name(f"{part.name}.etag").write_text(site.etag)
    assert fetch_weights(NAME).read_bytes() == CONTENT
    assert site.requests[0] == (f"/{FILE}", f"bytes={len(CONTENT)}-")


def test_a_busy_server_is_asked_again(site):
    site.statuses = [503, 429]
    assert fetch_weights(NAME).read_bytes() == CONTENT


def test_a_missing_file_is_not_asked_for_again(site, tmp_path):
    site.statuses = [404, 404]
    with pytest.raises(StorageError, match="answers 404") as caught:
        fetch_weights(NAME)
    assert len(site.requests) == 1
    for part in (f"{site.url}/{FILE}", str(cached(site, tmp_path)), "--weights-mirror FOLDER"):
        assert part in str(caught.value)


def test_another_content_is_refused_and_deleted(site, tmp_path):
    site.content = CONTENT[:-1] + b"!"
    with pytest.raises(StorageError, match=f"{NAME} has {DIGEST[:8]}: it is damaged"):
        fetch_weights(NAME)
    assert list(cached(site, tmp_path).parent.iterdir()) == []
    site.content = CONTENT
    assert fetch_weights(NAME).read_bytes() == CONTENT


def test_a_file_that_changed_in_the_cache_is_refused(site, monkeypatch):
    publish(site, monkeypatch, sha256="")  # as detectron2, which publishes none
    path = fetch_weights(NAME)
    path.write_bytes(b"other")
    with pytest.raises(StorageError, match=f"and {NAME} has {DIGEST}"):
        fetch_weights(NAME)


def test_without_a_connection_the_error_says_what_to_fetch_and_where_to_put_it(
    site, tmp_path, monkeypatch
):
    file = WeightsFile(name=NAME, url="http://127.0.0.1:9/models/some.pth")
    monkeypatch.setattr(fetch, "find_file", lambda _: file)
    with pytest.raises(StorageError, match=r"no connection to 127\.0\.0\.1:9") as caught:
        fetch_weights(NAME)
    place = tmp_path / "cache/127.0.0.1:9/models/some.pth"
    assert f"fetch {file.url} elsewhere and put it at {place}" in str(caught.value)
    place.write_bytes(CONTENT)
    assert fetch_weights(NAME) == place


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_folder_is_a_mirror(site, tmp_path, monkeypatch, by):
    host = site.url.removeprefix("http://")
    mirror = tmp_path / "mirror"
    if by == "environment":
        monkeypatch.setenv(fetch.MIRROR_VARIABLE, str(mirror))
    given = {"mirror": str(mirror)} if by == "argument" else {}
    with pytest.raises(StorageError, match=r"not in the mirror: .*no such file") as caught:
        fetch_weights(NAME, **given)
    assert f"Fetch {site.url}/{FILE} where there is internet" in str(caught.value)
    place = mirror / host / FILE
    place.parent.mkdir(parents=True)
    place.write_bytes(b"damaged")
    with pytest.raises(StorageError, match="it is damaged"):
        fetch_weights(NAME, **given)
    place.write_bytes(CONTENT)
    assert fetch_weights(NAME, **given) == place
    assert site.requests == []


def test_a_server_is_a_mirror(site, tmp_path):
    with serve(CONTENT) as other:
        path = fetch_weights(NAME, mirror=f"{other.url}/weights")
        assert other.requests == [(f"/weights/{site.url.removeprefix('http://')}/{FILE}", "")]
    assert path == cached(site, tmp_path)
    assert site.requests == []


def test_a_bucket_is_a_mirror(site, tmp_path, monkeypatch):
    place = tmp_path / "bucket" / site.url.removeprefix("http://") / FILE
    place.parent.mkdir(parents=True)
    place.write_bytes(b"damaged")
    monkeypatch.setattr(storage, "is_local", lambda _: False)
    with pytest.raises(StorageError, match="it is damaged"):
        fetch_weights(NAME, mirror=str(tmp_path / "bucket"))
    place.write_bytes(CONTENT)
    path = fetch_weights(NAME, mirror=str(tmp_path / "bucket"))
    assert (path, path.read_bytes()) == (cached(site, tmp_path), CONTENT)


def test_a_mirror_has_no_password(site):
    with pytest.raises(StorageError, match="no password and no options") as caught:
        fetch_weights(NAME, mirror="https://ada:secret@mirror.org/weights")
    assert "secret" not in str(caught.value)


def test_an_encrypted_download_is_not_redirected_to_an_open_one():
    request = download.Request("https://download.pytorch.org/models/some.pth")
    with pytest.raises(OSError, match=r"redirects to evil\.org without encryption"):
        download._KeepHttps().redirect_request(
            request, None, 302, "Found", {}, "http://evil.org/some.pth"
        )


def test_two_processes_at_once_download_once(site):
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetch_weights(NAME))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in paths] == [CONTENT] * 3
    assert len(site.requests) == 1


def test_names_and_their_addresses():
    file = find_file("torchvision:MaskRCNN_ResNet50_FPN_Weights.COCO_V1")
    assert file.path == "download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    assert file.sha256_prefix == "bf2d0c1e"
    file = find_file("detectron2:COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x")
    assert file.path == (
        "dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/"
        "137849600/model_final_f10217.pkl"
    )
    file = find_file("hf-hub:timm/resnet50.a1_in1k@v1")
    assert file.path == "huggingface.co/timm/resnet50.a1_in1k/resolve/v1/model.safetensors"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "torchvision:MaskRCNN_ResNet50_FPN_Weights.COCO_V3",
            "no such weights, perhaps you meant MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
        ),
        (
            "detectron2:COCO-InstanceSegmentation/mask_rcnn_R50_FPN_3x",
            "perhaps you meant COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x",
        ),
        ("hf-hub:resnet50", "needs a repository"),
        ("hf-hub:../../etc", "needs a repository"),
        ("hf-hub:timm/..", "needs a repository"),
        ("hf-hub:timm/resnet50@../..", "needs a repository"),
    ],
)
def test_unknown_names(name, problem):
    with pytest.raises(RecipeError, match=problem):
        find_file(name)


def test_the_hubs_own_library_downloads_from_it(site, monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def offline(*args, **kwargs):
        asked.append((args, kwargs))
        raise ConnectionError("no route to host")

    monkeypatch.setattr(fetch, "find_file", find_file)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(StorageError, match="no route to host") as caught:
        fetch_weights("hf-hub:timm/resnet50.a1_in1k")
    assert asked == [(("timm/resnet50.a1_in1k", "model.safetensors"), {"revision": "main"})]
    assert "as huggingface.co/timm/resnet50.a1_in1k/resolve/main/model.safetensors" in str(
        caught.value
    )


def test_only_paths_of_mirrors_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert to_absolute_mirror("mirror") == str(tmp_path / "mirror")
    for mirror in ("", "https://mirror.org/weights", "s3://bucket/weights"):
        assert to_absolute_mirror(mirror) == mirror
