"""Fetch published weights by name: from this machine's cache, a mirror, or their publisher.

The cache and a mirror have one layout, host and path of the URL, as `wget -x` writes it:
FOLDER/download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth. So the cache of one
machine can be the mirror of another.

A file is checked against the SHA-256 in torchvision's name of it; the Hub's library checks its own.
For detectron2, which publishes none, the server's length is checked, and nothing in a file is
executed. The SHA-256 of every download is kept beside it and checked at each later use.
"""

import hashlib
import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import checksums, storage
from pipeline.errors import StorageError
from pipeline.weights.download import download
from pipeline.weights.names import WeightsFile, find_file

MIRROR_VARIABLE = "BSM_WEIGHTS_MIRROR"
"""Environment variable with the mirror of recipes that name none."""
CACHE_VARIABLE = "BSM_WEIGHTS_CACHE"
"""Environment variable with the folder of downloads."""

_WEB = ("http", "https")

_log = logging.getLogger(__name__)


def fetch_weights(name: str, *, mirror: str = "") -> Path:
    """Return a local file with published weights; download it if it is not there yet.

    Args:
        name: such as torchvision:MaskRCNN_ResNet50_FPN_Weights.COCO_V1.
        mirror: folder, s3://, gs:// or http(s):// URL to take files from instead of their
            publisher; "" is that of the environment, or none.

    Raises:
        RecipeError: there are no such weights.
        StorageError: the file cannot be had, or its content is wrong.
    """
    file = find_file(name)
    mirror = mirror or os.environ.get(MIRROR_VARIABLE, "")
    cached = cache_folder() / file.path
    if cached.is_file():
        _check(file, cached)
        return cached
    if mirror:
        return _fetch_from_mirror(file, mirror, cached)
    try:
        if file.repository:
            return _fetch_from_hub(file)
        download(file.url, cached, check=lambda part: _check(file, part))
    except StorageError as error:
        raise StorageError(
            f"weights {name}: {error}. Where there is no internet, fetch {file.url} elsewhere and "
            f"put it at {cached}, or into a folder as {file.path} and add --weights-mirror FOLDER"
        ) from error
    _keep_digest(cached)
    return cached


def cache_folder() -> Path:
    """Return the folder of downloads."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "boundary-squeeze" / "weights"


def to_absolute_mirror(mirror: str) -> str:
    """Make the path of a mirror absolute; URLs stay."""
    is_web = urlsplit(mirror).scheme in _WEB
    return mirror if is_web or not mirror else storage.absolute(mirror)


def check_mirror(mirror: str) -> str:
    """Return what is wrong with a mirror's address, or ""."""
    parts = urlsplit(mirror)
    if parts.username or parts.password or parts.query:
        return (
            f"{parts.scheme}://{parts.hostname}{parts.path}: the address of a mirror has no "
            "password and no options, which would end up in logs and checkpoints"
        )
    return ""


def _fetch_from_mirror(file: WeightsFile, mirror: str, cached: Path) -> Path:
    if problem := check_mirror(mirror):
        raise StorageError(f"weights mirror {problem}")
    place = storage.join(mirror, file.path)
    try:
        if urlsplit(mirror).scheme in _WEB:
            download(place, cached, check=lambda part: _check(file, part))
        elif storage.is_local(mirror):
            local = Path(storage.absolute(place))
            _check(file, local)
            return local
        else:
            part = cached.with_name(f"{cached.name}.part")
            storage.write_bytes_atomic(str(part), storage.read_bytes(place))
            _check(file, part)
            part.replace(cached)
    except StorageError as error:
        raise StorageError(
            f"weights {file.name}: not in the mirror: {place}: {error}. Fetch {file.url} where "
            "there is internet, and put it there"
        ) from error
    _keep_digest(cached)
    return cached


def _fetch_from_hub(file: WeightsFile) -> Path:
    """Download with the Hub's own library: its cache, its token, its mirror (HF_ENDPOINT)."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415  only for these names

    name = file.url.rpartition("/")[2]
    _log.info("weights of %s: from the Hub's cache, or the Hub", file.repository)
    # Two lines for each retry; the error says what failed.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(file.repository, name, revision=file.revision))
    except (OSError, ValueError) as error:
        cause = str(error).strip().splitlines()[0][:200]
        raise StorageError(f"{type(error).__name__}: {cause}") from error


def _check(file: WeightsFile, path: Path) -> None:
    """Compare a file with the published checksum, and with that of its download."""
    digest = _hash(path)
    kept = checksums.read_sums(str(path.parent)).get(path.name, digest)
    if not digest.startswith(file.sha256_prefix) or digest != kept:
        wanted = file.sha256_prefix if not digest.startswith(file.sha256_prefix) else kept
        raise StorageError(
            f"{path} has the SHA-256 {digest}, and {file.name} has {wanted}: it is damaged or "
            "another file; delete it and get it again"
        )


def _keep_digest(path: Path) -> None:
    folder = str(path.parent)
    checksums.write_sums(folder, {**checksums.read_sums(folder), path.name: _hash(path)})
    _log.info("weights: kept in %s", path)


def _hash(path: Path) -> str:
    if not path.is_file():
        raise StorageError("there is no such file")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
