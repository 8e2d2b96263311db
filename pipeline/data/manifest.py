"""dataset.json: what a folder of shards holds, written last, so its presence says all is there.

Training plans from it without opening a shard, and refuses a folder that has none. It holds nothing
that depends on when or where it was written: the same source gives the same bytes.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pipeline import storage
from pipeline.data.schema import FIELD_SIDE, READ_VERSIONS, SCHEMA_VERSION, Task
from pipeline.errors import DatasetError

MANIFEST_FILE = "dataset.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """One category, by the data set's own id and by the index that models use."""

    category_id: int
    category_index: int
    name: str
    frequency: str = field(default="", compare=False)
    """LVIS's r, c or f: rare, common or frequent in its training images. It decides what numbers an
    evaluation prints, not what a model learns, so categories are the same without it."""


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
    """Size of the file; 0 where it is not known."""
    digest: str = ""
    """What the rows hold, as a hash that the shard carries in its footer too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a folder of shards holds."""

    task: Task = "instance"
    categories: tuple[Category, ...]
    """In the order of category_index, which counts from 0 without a gap."""
    shards: tuple[ShardInfo, ...]
    images: int
    annotations: int
    fingerprint: str
    """Names this content: equal wherever the same source was ingested in the same way."""
    source: str = ""
    """Where the rows come from: format, split, and the hash of its annotations."""
    category_images: tuple[int, ...] = ()
    """Images that show each category, by category_index; crowds do not count."""
    category_px: tuple[int, ...] = ()
    """Pixels of each class of semantic shards, by category_index."""
    federated: bool = False
    """Rows say which categories were looked for: schema.FEDERATED."""
    field_side: int = FIELD_SIDE
    on_bad: str = "stop"
    """What ingest did with what broke a rule: stop, drop or fix."""
    rejects: dict[str, int] = field(default_factory=dict)
    """How many images and annotations were dropped, by reason; each is in rejects.parquet."""
    fixed: dict[str, int] = field(default_factory=dict)
    """How many were repaired, by reason."""
    notices: dict[str, int] = field(default_factory=dict)
    """What was noticed and kept as it is, by kind."""
    schema_version: int = SCHEMA_VERSION

    @property
    def is_cityscapes(self) -> bool:
        """Whether these are Cityscapes' instances, which have metrics and a format of their own."""
        return self.source.startswith("cityscapes ")


def manifest_uri(uri: str) -> str:
    """Give the place of the manifest in a folder of shards."""
    return storage.join(uri, MANIFEST_FILE)


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Declare a folder of shards complete."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1) + "\n"
    storage.write_bytes_atomic(manifest_uri(uri), text.encode())


def read_manifest(uri: str) -> Manifest:
    """Read what a folder of shards holds.

    Raises:
        DatasetError: the folder is not complete, or this version cannot read its manifest.
        StorageError: the place cannot be read.
    """
    place = manifest_uri(uri)
    if not storage.exists(place):
        raise DatasetError(
            f"{uri} holds no {MANIFEST_FILE}: it is no folder of shards, or ingest has not "
            f"finished; make it, or go on where it stopped, with: "
            f"python jobs/ingest.py coco --root DIR_OR_URI --split NAME --out {uri} "
            "(other data sets: python jobs/ingest.py --help)"
        )
    try:
        found = json.loads(storage.read_bytes(place))
    except ValueError as error:
        raise DatasetError(f"{place} is not JSON ({error}); ingest again to write it") from error
    return _from_plain(found, place)


def _from_plain(found: object, place: str) -> Manifest:
    if not isinstance(found, dict):
        raise DatasetError(f"{place} holds no manifest; ingest again to write it")
    version = found.get("schema_version")
    if version not in READ_VERSIONS:
        raise DatasetError(
            f"{place} has schema version {version}, this version reads "
            f"{' and '.join(map(str, READ_VERSIONS))}; ingest again"
        )
    try:
        manifest = Manifest(
            **{
                **found,
                "categories": tuple(Category(**each) for each in found["categories"]),
                "category_images": tuple(found.get("category_images", ())),
                "category_px": tuple(found.get("category_px", ())),
                "shards": tuple(_shard(each) for each in found["shards"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{place} is damaged ({error}); ingest again to write it") from error
    problems = _problems(manifest)
    if problems:
        raise DatasetError(f"{place} is damaged: {'; '.join(problems)}; ingest again to write it")
    return manifest


def _shard(plain: Mapping[str, Any]) -> ShardInfo:
    return ShardInfo(**{**plain, "row_groups": tuple(plain["row_groups"])})


def _problems(manifest: Manifest) -> list[str]:
    """List the ways in which a manifest contradicts itself."""
    rules = [
        (manifest.task in get_args(Task), f"unknown task {manifest.task!r}"),
        (
            [each.category_index for each in manifest.categories]
            == list(range(len(manifest.categories))),
            "category_index does not count 0, 1, 2, ...",
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
            all("/" not in shard.file and "\\" not in shard.file for shard in manifest.shards),
            "a shard lies outside the folder",
        ),
    ]
    return [text for holds, text in rules if not holds]
