"""dataset.json: the manifest of a folder of shards, written last, so its presence means complete.

Training plans from it without opening a shard, and refuses a folder without one. Nothing in it
depends on when or where it was written: the same source gives the same bytes.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pyarrow.fs import FileType

from pipeline import storage
from pipeline.data.dataset_files import describe_unsafe_name
from pipeline.data.schema import FIELD_SIDE, READ_VERSIONS, SCHEMA_VERSION, Task
from pipeline.data.text_files import parse_json, to_typed
from pipeline.errors import DatasetError, StorageError
from pipeline.text import format_names

MANIFEST_FILE = "dataset.json"
_MOST_SPLITS = 50
"""Folders that are searched for a manifest to suggest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """One category, by the data set's own id and by the index that models use."""

    category_id: int
    category_index: int
    name: str
    frequency: str = field(default="", compare=False)
    """LVIS's r, c or f: rare, common or frequent in its training images. It affects the metrics of
    an evaluation, not what a model learns, so categories compare equal without it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One Parquet file of rows."""

    file: str
    """Name inside the folder."""
    rows: int
    row_groups: tuple[int, ...]
    """Rows of each row group, in order."""
    annotations: int = 0
    size_bytes: int = 0
    """Size of the file; 0 if unknown."""
    digest: str = ""
    """Hash of the rows, also in the shard's footer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of a folder of shards."""

    task: Task = "instance"
    categories: tuple[Category, ...]
    """In the order of category_index, which counts from 0 without a gap."""
    shards: tuple[ShardInfo, ...]
    images: int
    annotations: int
    fingerprint: str
    """Identifies the content: equal wherever the same source was ingested in the same way."""
    source: str = ""
    """Origin of the rows: format, split, and the hash of the annotations."""
    category_images: tuple[int, ...] = ()
    """Images that show each category, by category_index; crowds do not count."""
    category_px: tuple[int, ...] = ()
    """Pixels of each class of semantic shards, by category_index."""
    federated: bool = False
    """Rows have the columns schema.FEDERATED."""
    field_side: int = FIELD_SIDE
    on_bad: str = "stop"
    """What ingest did with bad images and annotations: stop, drop or fix."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Dropped images and annotations by kind of problem; each is in rejects.parquet."""
    fixed: dict[str, int] = field(default_factory=dict)
    """Repaired images and annotations by kind of problem."""
    notices: dict[str, int] = field(default_factory=dict)
    """Notices by kind; their images and annotations are kept unchanged."""
    schema_version: int = SCHEMA_VERSION

    @property
    def is_cityscapes(self) -> bool:
        """Tell whether these are Cityscapes' instances, which have their own metrics and format."""
        return self.source.startswith("cityscapes ")


def manifest_uri(uri: str) -> str:
    """Return the URI of the manifest in a folder of shards."""
    return storage.join(uri, MANIFEST_FILE)


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Write the manifest, which declares a folder of shards complete."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1) + "\n"
    storage.write_bytes_atomic(manifest_uri(uri), text.encode())


def read_manifest(uri: str) -> Manifest:
    """Read the manifest of a folder of shards.

    Raises:
        DatasetError: the folder is not complete, or this version cannot read its manifest.
        StorageError: the manifest cannot be read.
    """
    path = manifest_uri(uri)
    if not storage.exists(path):
        raise DatasetError(
            f"{uri} has no {MANIFEST_FILE}: it is not a folder of shards, or ingest has not "
            f"finished{_suggest_splits(uri)}. Create or complete it with: "
            f"python jobs/ingest.py coco --root DIR_OR_URI --split NAME --out {uri} "
            "(other data sets: python jobs/ingest.py --help)"
        )
    try:
        plain = parse_json(storage.read_bytes(path))
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}); ingest again to write it") from error
    return _parse(plain, path)


def _suggest_splits(uri: str) -> str:
    """Name the finished splits in a folder, or beside it."""
    for folder in (uri, uri.rstrip("/").rpartition("/")[0]):
        try:
            listed = storage.list_folder(folder) if folder else []
        except StorageError:  # it is only asked for a suggestion, and may not be ours
            continue
        names = sorted(each.base_name for each in listed if each.type == FileType.Directory)
        found = [
            name
            for name in names[:_MOST_SPLITS]
            if storage.exists(manifest_uri(storage.join(folder, name)))
        ]
        if found:
            return f"; {folder} holds the shards of {format_names(found)}"
    return ""


def _parse(plain: object, path: str) -> Manifest:
    if not isinstance(plain, dict):
        raise DatasetError(f"{path} is not a manifest; ingest again to write it")
    version = plain.get("schema_version")
    if version not in READ_VERSIONS:
        raise DatasetError(
            f"{path} has schema version {version!r:.40}, this version reads "
            f"{' and '.join(map(str, READ_VERSIONS))}; ingest again"
        )
    try:
        manifest = to_typed(Manifest, plain)
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error}); ingest again to write it") from error
    problems = _find_contradictions(manifest)
    if problems:
        raise DatasetError(f"{path} is damaged: {'; '.join(problems)}; ingest again to write it")
    return manifest


def parse_shard_info(plain: Mapping[str, Any]) -> ShardInfo:
    """Make a ShardInfo from its JSON form."""
    return ShardInfo(**{**plain, "row_groups": tuple(plain["row_groups"])})


def _find_contradictions(manifest: Manifest) -> list[str]:
    rules = [
        (manifest.task in get_args(Task), f"unknown task {manifest.task!r}"),
        (
            [each.category_index for each in manifest.categories]
            == list(range(len(manifest.categories))),
            "category_index does not count 0, 1, 2, ...",
        ),
        (
            min((min(shard.row_groups, default=0) for shard in manifest.shards), default=0) >= 0,
            "a row group has a negative number of rows",
        ),
        (
            sum(shard.rows for shard in manifest.shards) == manifest.images,
            f"the shards' rows do not add up to {manifest.images} images",
        ),
        (
            all(sum(shard.row_groups) == shard.rows for shard in manifest.shards),
            "the row groups of a shard do not add up to its rows",
        ),
        (
            not any(
                "/" in each.file or describe_unsafe_name(each.file) for each in manifest.shards
            ),
            "a shard is outside the folder",
        ),
    ]
    return [text for holds, text in rules if not holds]
