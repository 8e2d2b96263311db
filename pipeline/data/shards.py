"""Make one shard: read its images, check them, write one Parquet file; or find that this is done.

A shard is a pure function of its part of the annotations and of its image files, so it can be made
anywhere, again, and in any order. What it was made from stands in the file's own footer.
"""

import hashlib
import json
import resource
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.examine import MAX_IMAGE_BYTES, MAX_PIXELS, examine
from pipeline.data.manifest import ShardInfo
from pipeline.data.problems import EXAMPLES, Problem
from pipeline.data.schema import FIELD_SIDE, INSTANCE_SCHEMA, SCHEMA_VERSION
from pipeline.data.sources.coco import Entry
from pipeline.errors import StorageError

ROW_GROUP_ROWS = 32
"""Rows that are read at once, and the grain of the shuffle (architecture: the data plan)."""

FOOTER_KEY = b"boundary-squeeze.shard"

OnBad = Literal["stop", "drop", "fix"]

_RULES_VERSION = 1
"""Raise it when the same input gives other rows: then finished shards are made again."""

_READERS = 8
"""Files read at once: object stores answer slowly and many at a time."""

_IMAGE_KINDS = (
    "image_missing",
    "image_unreadable",
    "image_format",
    "image_too_large",
    "image_size",
)
"""What is wrong with a file can be mended without a trace in the annotations."""

# Of short numbers the footer keeps least and greatest, which the audit reads; encoded images do not
# get smaller, fields do, ten times.
_NUMBERS = [
    "image_id",
    "height",
    "width",
    "category_index.list.element",
    "area_px.list.element",
]
_COMPRESSION = {
    "file_name": "zstd",
    "image": "none",
    "annotation_id.list.element": "zstd",
    "boxes_xyxy.list.element.list.element": "zstd",
    "is_crowd.list.element": "zstd",
    "rle.list.element": "zstd",
    "squeeze_field.list.element": "zstd",
    **dict.fromkeys(_NUMBERS, "zstd"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSettings:
    """What all shards of a data set have in common."""

    images_uri: str
    out: str
    category_index: dict[int, int]
    """By category_id."""
    on_bad: OnBad = "stop"
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """What became of a shard."""

    info: ShardInfo
    problems: list[Problem] = field(default_factory=list)
    """All but notices."""
    notices: dict[str, list[str]] = field(default_factory=dict)
    """First examples by kind."""
    notice_counts: dict[str, int] = field(default_factory=dict)
    images: int = 0
    """Image entries looked at, sound or not."""
    was_done: bool = False
    peak_rss_mb: int = 0

    @property
    def is_clean(self) -> bool:
        """Tell whether every image and annotation is in the shard as it came."""
        return not self.problems


def pack(images: list[Entry]) -> bytes:
    """Pack a shard's part of the annotations for the way to a worker."""
    return zlib.compress(json.dumps(images).encode(), level=1)


def make_shard(file: str, packed: bytes, settings: ShardSettings) -> ShardReport:
    """Make a shard, unless it is there already.

    Args:
        file: its name.
        packed: its images, as `pack` gives them.
        settings: those of the data set.

    Returns:
        What is in it and what is wrong; with `on_bad="stop"` a shard with problems is not written.

    Raises:
        StorageError: images cannot be read, other than that they are not there, or the shard cannot
            be written.
    """
    source = _source_hash(packed, settings)
    place = storage.join(settings.out, file)
    done = _read_report(place, source, settings.on_bad)
    if done is not None:
        return done
    images = json.loads(zlib.decompress(packed))
    made = _Shard()
    for image, data in _with_files(images, settings.images_uri):
        made.add(image, data, settings)
    report = made.close(file, source, settings)
    if report.info.rows and (report.is_clean or settings.on_bad != "stop"):
        storage.write_bytes_atomic(place, made.bytes())
        report = replace(report, info=replace(report.info, size_bytes=len(made.bytes())))
    return report


class _Shard:
    """A shard in the making: row groups as they fill, and what was found on the way."""

    def __init__(self) -> None:
        self._out = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._out,
            INSTANCE_SCHEMA,
            compression=_COMPRESSION,
            use_dictionary=False,
            write_statistics=_NUMBERS,
            write_page_checksum=True,
        )
        self._rows: list[dict[str, Any]] = []
        self._row_groups: list[int] = []
        self._annotations = 0
        self._digest = hashlib.sha256()
        self._images = 0
        self._problems: list[Problem] = []
        self._notices: dict[str, list[str]] = {}
        self._notice_counts: dict[str, int] = {}

    def add(self, image: Entry, data: bytes | None, settings: ShardSettings) -> None:
        """Examine an image and keep its row."""
        self._images += 1
        found = examine(
            image,
            data,
            settings.category_index,
            max_pixels=settings.max_pixels,
            clip_boxes=settings.on_bad == "fix",
        )
        for problem in found.problems:
            self._note(problem, settings)
        if found.row is not None:
            self._rows.append(found.row)
            self._annotations += len(found.row["annotation_id"])
            self._digest.update(row_digest(found.row))
        if len(self._rows) == ROW_GROUP_ROWS:
            self._flush()

    def close(self, file: str, source: str, settings: ShardSettings) -> ShardReport:
        """Finish the file, with the report in its footer."""
        self._flush()
        info = ShardInfo(
            file=file,
            rows=sum(self._row_groups),
            row_groups=tuple(self._row_groups),
            annotations=self._annotations,
            digest=self._digest.hexdigest(),
        )
        report = ShardReport(
            info=info,
            problems=self._problems,
            notices=self._notices,
            notice_counts=self._notice_counts,
            images=self._images,
            peak_rss_mb=peak_rss_mb(),
        )
        # A shard without problems is the same whatever is done with problems.
        on_bad = "" if report.is_clean else settings.on_bad
        stored = {**asdict(report), "source": source, "on_bad": on_bad}
        del stored["peak_rss_mb"], stored["was_done"]
        self._writer.add_key_value_metadata({FOOTER_KEY.decode(): json.dumps(stored)})
        self._writer.close()
        return report

    def bytes(self) -> Any:  # noqa: ANN401  an Arrow buffer: as good as bytes, and not copied
        """The finished file."""
        return self._out.getvalue()

    def _note(self, problem: Problem, settings: ShardSettings) -> None:
        if problem.severity == "notice":
            self._notice_counts[problem.kind] = self._notice_counts.get(problem.kind, 0) + 1
            examples = self._notices.setdefault(problem.kind, [])
            if len(examples) < EXAMPLES:
                examples.append(f"{problem.subject}: {problem.reason}")
            return
        if problem.action == "found" and settings.on_bad != "stop":
            problem = replace(problem, action="dropped")
        self._problems.append(problem)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=INSTANCE_SCHEMA))
            self._row_groups.append(len(self._rows))
            self._rows.clear()


def row_digest(row: dict[str, Any]) -> bytes:
    """Hash what a row holds, as it is written and as it is read back."""
    digest = hashlib.sha256(row["image"])
    numbers = [row[key] for key in ("image_id", "file_name", "height", "width", "annotation_id")]
    numbers += [row[key] for key in ("category_index", "is_crowd")]
    digest.update(json.dumps(numbers).encode())
    digest.update(np.asarray(row["boxes_xyxy"], dtype=np.float32).tobytes())
    digest.update(np.asarray(row["area_px"], dtype=np.float32).tobytes())
    for encoded in (*row["rle"], *row["squeeze_field"]):
        digest.update(encoded)
    return digest.digest()


def read_footer(place: str) -> tuple[pq.FileMetaData, dict[str, Any]] | None:
    """Read a shard's Parquet metadata and what ingest wrote into it.

    Returns:
        None where there is no such file, or it is no shard.
    """
    fs, path = storage.resolve(place)
    try:
        with fs.open_input_file(path) as stream:
            metadata = pq.read_metadata(stream)
        return metadata, json.loads((metadata.metadata or {})[FOOTER_KEY])
    except (OSError, KeyError, ValueError):
        return None


def peak_rss_mb() -> int:
    """Tell the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _source_hash(packed: bytes, settings: ShardSettings) -> str:
    ids = sorted(settings.category_index.items())
    rules = [_RULES_VERSION, SCHEMA_VERSION, FIELD_SIDE, settings.max_pixels, ids]
    digest = hashlib.sha256(json.dumps(rules).encode())
    digest.update(zlib.decompress(packed))
    return digest.hexdigest()


def _read_report(place: str, source: str, on_bad: str) -> ShardReport | None:
    """Give the report of a finished shard; None where it must be made."""
    footer = read_footer(place)
    if footer is None or footer[1].get("source") != source:
        return None
    stored = footer[1]
    problems = [Problem(**each) for each in stored["problems"]]
    if stored["on_bad"] not in ("", on_bad) or any(each.kind in _IMAGE_KINDS for each in problems):
        return None
    fs, path = storage.resolve(place)
    info = {**stored["info"], "row_groups": tuple(stored["info"]["row_groups"])}
    info["size_bytes"] = fs.get_file_info(path).size
    return ShardReport(
        info=ShardInfo(**info),
        problems=problems,
        notices=stored["notices"],
        notice_counts=stored["notice_counts"],
        images=stored["images"],
        was_done=True,
        peak_rss_mb=peak_rss_mb(),
    )


def _with_files(images: list[Entry], images_uri: str) -> Iterator[tuple[Entry, bytes | None]]:
    """Read the files of images, a row group ahead at most."""
    fs, folder = storage.resolve(images_uri)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(images), ROW_GROUP_ROWS):
            group = images[start : start + ROW_GROUP_ROWS]
            names = [image["file_name"] for image in group]
            yield from zip(
                group, pool.map(lambda name: _read(fs, folder, name), names), strict=True
            )


def _read(fs: pafs.FileSystem, folder: str, name: str) -> bytes | None:
    path = f"{folder}/{name}"
    try:
        return _open(fs, path)
    except FileNotFoundError:
        return None
    except OSError as error:
        # A disk or network that fails must not look like a data set that lacks images.
        if fs.get_file_info(path).type == pafs.FileType.Directory:
            return None
        cause = str(error).splitlines()[0][:300]
        raise StorageError(
            f"cannot read {path}: {cause}; mend that and run the same command again: "
            "finished shards are kept"
        ) from error


def _open(fs: pafs.FileSystem, path: str) -> bytes:
    with fs.open_input_file(path) as stream:
        # One byte more than allowed tells that there are more.
        return bytes(stream.read(MAX_IMAGE_BYTES + 1))
