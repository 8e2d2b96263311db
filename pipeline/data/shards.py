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
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.dataset_files import Files, Found
from pipeline.data.manifest import ShardInfo
from pipeline.data.problems import EXAMPLES, Problem
from pipeline.data.schema import (
    FEDERATED,
    FIELD_SIDE,
    PLANES,
    SCHEMA_VERSION,
    row_digest,
    schema_of,
)
from pipeline.data.source_index import (
    AnnotationRules,
    File,
    FrameRules,
    LabelRules,
    Listed,
    Rules,
    is_federated,
    task_of,
)
from pipeline.data.validate_cityscapes import examine_frame
from pipeline.data.validate_image import MAX_IMAGE_BYTES, MAX_PIXELS, Examined, examine
from pipeline.data.validate_label_map import examine_label

ROW_GROUP_ROWS = 32
"""Rows that are read at once, and the grain of the shuffle (architecture: the data plan)."""

FOOTER_KEY = b"boundary-squeeze.shard"

OnBad = Literal["stop", "drop", "fix"]

_RULES_VERSION = 1
"""Raise it when the same input gives other rows: then finished shards are made again."""

_READERS = 8
"""Files read at once: object stores answer slowly and many at a time."""

_FILE_KINDS = ("image_", "label_", "polygon_file")
"""What is wrong with a file can be mended without a trace in the listing."""

# Of short numbers the footer keeps least and greatest, which the audit reads; encoded images do not
# get smaller, fields do, ten times.
_NUMBERS = [
    "image_id",
    "height",
    "width",
    "category_index.list.element",
    "area_px.list.element",
    "class_px.list.element",
]
_COMPRESSION = {
    "file_name": "zstd",
    "image": "none",
    "annotation_id.list.element": "zstd",
    "boxes_xyxy.list.element.list.element": "zstd",
    "is_crowd.list.element": "zstd",
    "rle.list.element": "zstd",
    "squeeze_field.list.element": "zstd",
    **{f"{name}.list.element": "zstd" for name in FEDERATED.values()},
    **dict.fromkeys(PLANES, "none"),
    **dict.fromkeys(_NUMBERS, "zstd"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSettings:
    """What all shards of a data set have in common."""

    rules: Rules
    mounts: dict[str, str]
    """Where files lie; they take no part in what a shard is made from."""
    num_categories: int
    out: str
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
    category_images: list[int] = field(default_factory=list)
    """Rows in which a category is, by category_index; crowds do not count."""
    category_px: list[int] = field(default_factory=list)
    """Pixels of each class of a semantic shard, by category_index."""
    was_done: bool = False
    peak_rss_mb: int = 0

    @property
    def is_clean(self) -> bool:
        """Tell whether every image and annotation is in the shard as it came."""
        return not self.problems


def pack(images: list[Listed]) -> bytes:
    """Pack a shard's part of a listing for the way to a worker."""
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
    made = _Shard(settings)
    for image, files in _with_files(_unpacked(packed), settings.mounts):
        made.add(image, files)
    report = made.close(file, source)
    if report.info.rows and (report.is_clean or settings.on_bad != "stop"):
        storage.write_bytes_atomic(place, made.bytes())
        report = replace(report, info=replace(report.info, size_bytes=len(made.bytes())))
    return report


class _Shard:
    """A shard in the making: row groups as they fill, and what was found on the way."""

    def __init__(self, settings: ShardSettings) -> None:
        self._settings = settings
        self._schema = schema_of(task_of(settings.rules), federated=is_federated(settings.rules))
        self._out = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._out,
            self._schema,
            compression=_of_schema(_COMPRESSION, self._schema),
            use_dictionary=False,
            write_statistics=list(_of_schema(dict.fromkeys(_NUMBERS), self._schema)),
            write_page_checksum=True,
        )
        self._rows: list[dict[str, Any]] = []
        self._row_groups: list[int] = []
        self._annotations = 0
        self._category_images = [0] * settings.num_categories
        self._category_px = [0] * settings.num_categories
        self._digest = hashlib.sha256()
        self._images = 0
        self._problems: list[Problem] = []
        self._notices: dict[str, list[str]] = {}
        self._notice_counts: dict[str, int] = {}

    def add(self, image: Listed, files: "_FilesOf") -> None:
        """Examine an image and keep its row."""
        self._images += 1
        found = _examined(image, files, self._settings)
        for problem in found.problems:
            self._note(problem)
        if found.row is not None:
            self._keep(found.row)

    def close(self, file: str, source: str) -> ShardReport:
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
            category_images=self._category_images,
            category_px=self._category_px,
            peak_rss_mb=peak_rss_mb(),
        )
        # A shard without problems is the same whatever is done with problems.
        on_bad = "" if report.is_clean else self._settings.on_bad
        stored = {**asdict(report), "source": source, "on_bad": on_bad}
        del stored["peak_rss_mb"], stored["was_done"]
        self._writer.add_key_value_metadata({FOOTER_KEY.decode(): json.dumps(stored)})
        self._writer.close()
        return report

    def bytes(self) -> Any:  # noqa: ANN401  an Arrow buffer: as good as bytes, and not copied
        """The finished file."""
        return self._out.getvalue()

    def _keep(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._annotations += len(row.get("annotation_id", ()))
        for index in _categories_in(row):
            self._category_images[index] += 1
        for index, pixels in zip(row["category_index"], row.get("class_px", ()), strict=False):
            self._category_px[index] += pixels
        self._digest.update(row_digest(row))
        if len(self._rows) == ROW_GROUP_ROWS:
            self._flush()

    def _note(self, problem: Problem) -> None:
        if problem.severity == "notice":
            self._notice_counts[problem.kind] = self._notice_counts.get(problem.kind, 0) + 1
            examples = self._notices.setdefault(problem.kind, [])
            if len(examples) < EXAMPLES:
                examples.append(f"{problem.subject}: {problem.reason}")
            return
        if problem.action == "found" and self._settings.on_bad != "stop":
            problem = replace(problem, action="dropped")
        self._problems.append(problem)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._row_groups.append(len(self._rows))
            self._rows.clear()


class _FilesOf(NamedTuple):
    """The files of an image as they were read."""

    image: Found
    label: Found


def _examined(image: Listed, files: _FilesOf, settings: ShardSettings) -> Examined:
    rules, fix = settings.rules, settings.on_bad == "fix"
    match rules:
        case AnnotationRules():
            return examine(
                image.entry,
                files.image,
                rules.category_index,
                max_pixels=settings.max_pixels,
                clip_boxes=fix,
                federated=rules.federated,
            )
        case FrameRules():
            return examine_frame(
                image.entry, files.image, files.label, max_pixels=settings.max_pixels
            )
        case LabelRules():
            return examine_label(
                image.entry,
                files.image,
                files.label,
                rules,
                max_pixels=settings.max_pixels,
                take_palette=fix,
            )


def _categories_in(row: dict[str, Any]) -> set[int]:
    crowds = row.get("is_crowd")
    return {
        index
        for number, index in enumerate(row["category_index"])
        if crowds is None or not crowds[number]
    }


def _of_schema(settings: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Leave those of the columns that there are."""
    return {path: each for path, each in settings.items() if path.split(".")[0] in schema.names}


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
    rules = [type(settings.rules).__name__, asdict(settings.rules)]
    made = [_RULES_VERSION, SCHEMA_VERSION, FIELD_SIDE, settings.max_pixels, rules]
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode())
    digest.update(zlib.decompress(packed))
    return digest.hexdigest()


def _read_report(place: str, source: str, on_bad: str) -> ShardReport | None:
    """Give the report of a finished shard; None where it must be made."""
    footer = read_footer(place)
    if footer is None or footer[1].get("source") != source:
        return None
    stored = footer[1]
    problems = [Problem(**each) for each in stored["problems"]]
    if stored["on_bad"] not in ("", on_bad) or any(
        each.kind.startswith(_FILE_KINDS) for each in problems
    ):
        return None
    info = {**stored["info"], "row_groups": tuple(stored["info"]["row_groups"])}
    info["size_bytes"] = storage.file_size(place) or 0
    return ShardReport(
        info=ShardInfo(**info),
        problems=problems,
        notices=stored["notices"],
        notice_counts=stored["notice_counts"],
        images=stored["images"],
        category_images=stored["category_images"],
        category_px=stored["category_px"],
        was_done=True,
        peak_rss_mb=peak_rss_mb(),
    )


def _unpacked(packed: bytes) -> list[Listed]:
    return [
        Listed(entry, File(*image), None if label is None else File(*label))
        for entry, image, label in json.loads(zlib.decompress(packed))
    ]


def _with_files(images: list[Listed], mounts: dict[str, str]) -> Iterator[tuple[Listed, _FilesOf]]:
    """Read the files of images, a row group ahead at most."""
    with Files() as files, ThreadPoolExecutor(_READERS) as pool:

        def read(file: File | None) -> Found:
            if file is None:
                return Found(None)
            # One byte more than allowed tells that there are more.
            return files.read(mounts[file.mount], file.name, most_bytes=MAX_IMAGE_BYTES + 1)

        for start in range(0, len(images), ROW_GROUP_ROWS):
            group = images[start : start + ROW_GROUP_ROWS]
            found = pool.map(lambda each: _FilesOf(read(each.image), read(each.label)), group)
            yield from zip(group, found, strict=True)
