"""Make one shard: validate its images and write one Parquet file, or find that it is done already.

A shard is a pure function of its entries and image files, so it can be made anywhere, in any order,
and more than once. The file's footer records what it was made from.
"""

import hashlib
import json
import resource
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.dataset_files import FileContent, FileReader
from pipeline.data.manifest import ShardInfo, parse_shard_info
from pipeline.data.photo import MAX_IMAGE_BYTES, MAX_PIXELS
from pipeline.data.problems import Problem, ProblemCounts
from pipeline.data.schema import (
    FEDERATED,
    FIELD_SIDE,
    PLANES,
    SCHEMA_VERSION,
    get_schema,
    hash_row,
)
from pipeline.data.source_index import (
    AnnotationRules,
    File,
    FrameRules,
    LabelRules,
    Rules,
    SourceImage,
)
from pipeline.data.text_files import parse_json
from pipeline.data.validate_cityscapes import validate_frame
from pipeline.data.validate_image import ValidatedImage, validate_image
from pipeline.data.validate_label_map import validate_label_map

ROW_GROUP_ROWS = 32
"""Rows read at once, and the unit of the shuffle."""

FOOTER_KEY = b"boundary-squeeze.shard"

OnBad = Literal["stop", "drop", "fix"]

_RULES_VERSION = 2
"""Raise it when equal input gives other rows, so that finished shards are made again."""

_READ_THREADS = 8
"""Object stores have high latency, and serve many requests at once."""

_FILE_KINDS = ("image_", "label_", "polygon_file")
"""A file can be repaired without a change in the index, so these problems are checked again."""

# The audit reads min and max of these from the footer. Encoded images do not compress; fields do,
# ten times.
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
    """Settings shared by all shards of a data set."""

    rules: Rules
    mounts: dict[str, str]
    """URI by mount name. A shard's content does not depend on it."""
    num_categories: int
    out: str
    on_bad: OnBad = "stop"
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardReport:
    """The content and the problems of a finished shard."""

    info: ShardInfo
    problems: list[Problem] = field(default_factory=list)
    """All but notices."""
    notices: dict[str, list[str]] = field(default_factory=dict)
    """First examples by kind."""
    notice_counts: dict[str, int] = field(default_factory=dict)
    images: int = 0
    """Image entries validated, with or without a row."""
    category_images: list[int] = field(default_factory=list)
    """Rows with each category, by category_index; crowds do not count."""
    category_px: list[int] = field(default_factory=list)
    """Pixels of each class of a semantic shard, by category_index."""
    was_reused: bool = False
    peak_rss_mb: int = 0

    @property
    def is_clean(self) -> bool:
        """Tell whether every image and annotation is in the shard unchanged."""
        return not self.problems


def parse_report(plain: dict[str, Any]) -> ShardReport:
    """Make a report from its JSON form."""
    problems = [Problem(**each) for each in plain["problems"]]
    return ShardReport(**{**plain, "info": parse_shard_info(plain["info"]), "problems": problems})


def pack(images: list[SourceImage]) -> bytes:
    """Pack a shard's part of an index to send it to a worker."""
    return zlib.compress(json.dumps(images, default=list).encode(), level=1)


def make_shard(file: str, packed: bytes, settings: ShardSettings) -> ShardReport:
    """Make a shard, unless it exists already.

    Args:
        file: its name.
        packed: its images, from `pack`.
        settings: those of the data set.

    Returns:
        Its content and problems; with `on_bad="stop"` a shard with problems is not written.

    Raises:
        StorageError: an existing image cannot be read, or the shard cannot be written.
    """
    source = _hash_source(packed, settings)
    uri = storage.join(settings.out, file)
    done = _read_report(uri, source, settings.on_bad)
    if done is not None:
        return done
    shard = _Shard(settings)
    for image, content, label in _read_files(_unpack(packed), settings.mounts):
        shard.add(image, content, label)
    report = shard.close(file, source)
    if report.info.rows and (report.is_clean or settings.on_bad != "stop"):
        storage.write_bytes_atomic(uri, shard.bytes())
        report = replace(report, info=replace(report.info, size_bytes=len(shard.bytes())))
    return report


class _Shard:
    """A shard under construction: full row groups, and the problems found so far."""

    def __init__(self, settings: ShardSettings) -> None:
        self._settings = settings
        self._schema = get_schema(settings.rules.task, federated=settings.rules.federated)
        self._out = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._out,
            self._schema,
            compression=_select_columns(_COMPRESSION, self._schema),
            use_dictionary=False,
            write_statistics=list(_select_columns(dict.fromkeys(_NUMBERS), self._schema)),
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
        self._notices = ProblemCounts()

    def add(self, image: SourceImage, content: FileContent, label: FileContent) -> None:
        """Validate an image and keep its row."""
        self._images += 1
        result = _validate(image, content, label, self._settings)
        for problem in result.problems:
            self._note(problem)
        if result.row is not None:
            self._keep(result.row)

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
            notices=self._notices.examples,
            notice_counts=dict(self._notices.counts),
            images=self._images,
            category_images=self._category_images,
            category_px=self._category_px,
            peak_rss_mb=peak_rss_mb(),
        )
        # Without problems, on_bad makes no difference.
        on_bad = "" if report.is_clean else self._settings.on_bad
        stored = {**asdict(report), "source": source, "on_bad": on_bad}
        del stored["peak_rss_mb"], stored["was_reused"]
        self._writer.add_key_value_metadata({FOOTER_KEY.decode(): json.dumps(stored)})
        self._writer.close()
        return report

    def bytes(self) -> Any:  # noqa: ANN401  an Arrow buffer: as good as bytes, and not copied
        """Return the finished file."""
        return self._out.getvalue()

    def _keep(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._annotations += len(row.get("annotation_id", ()))
        for index in _categories_in(row):
            self._category_images[index] += 1
        for index, pixels in zip(row["category_index"], row.get("class_px", ()), strict=False):
            self._category_px[index] += pixels
        self._digest.update(hash_row(row))
        if len(self._rows) == ROW_GROUP_ROWS:
            self._flush()

    def _note(self, problem: Problem) -> None:
        if problem.severity == "notice":
            self._notices.add(problem.kind, problem.example)
            return
        if problem.action == "found" and self._settings.on_bad != "stop":
            problem = replace(problem, action="dropped")
        self._problems.append(problem)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._row_groups.append(len(self._rows))
            self._rows.clear()


def _validate(
    image: SourceImage, content: FileContent, label: FileContent, settings: ShardSettings
) -> ValidatedImage:
    rules, max_pixels, fix = settings.rules, settings.max_pixels, settings.on_bad == "fix"
    match rules:
        case AnnotationRules():
            return validate_image(
                image.entry,
                content,
                rules.category_index,
                max_pixels=max_pixels,
                clip_boxes=fix,
                federated=rules.federated,
            )
        case FrameRules():
            return validate_frame(image.entry, content, label, max_pixels=max_pixels)
        case LabelRules():
            return validate_label_map(
                image.entry, content, label, rules, max_pixels=max_pixels, take_palette=fix
            )


def _categories_in(row: dict[str, Any]) -> set[int]:
    crowds = row.get("is_crowd")
    return {
        index
        for number, index in enumerate(row["category_index"])
        if crowds is None or not crowds[number]
    }


def _select_columns(settings: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Select the settings of columns that the schema has."""
    return {path: each for path, each in settings.items() if path.split(".")[0] in schema.names}


def read_footer(uri: str) -> tuple[pq.FileMetaData, dict[str, Any]] | None:
    """Read a shard's Parquet metadata and what ingest wrote into it.

    Returns:
        None if the file is missing or not a shard.
    """
    fs, path = storage.resolve(uri)
    try:
        with fs.open_input_file(path) as stream:
            metadata = pq.read_metadata(stream)
        metadata.schema.to_arrow_schema()  # its names may not be text
        stored = parse_json((metadata.metadata or {})[FOOTER_KEY])
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return None
    is_ours = isinstance(stored, dict) and isinstance(stored.get("info"), dict)
    return (metadata, stored) if is_ours else None  # type: ignore[return-value]


def peak_rss_mb() -> int:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _hash_source(packed: bytes, settings: ShardSettings) -> str:
    rules = [type(settings.rules).__name__, asdict(settings.rules)]
    inputs = [_RULES_VERSION, SCHEMA_VERSION, FIELD_SIDE, settings.max_pixels, rules]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    digest.update(zlib.decompress(packed))
    return digest.hexdigest()


def _read_report(uri: str, source: str, on_bad: str) -> ShardReport | None:
    """Read the report of a finished shard; None if the shard must be made."""
    footer = read_footer(uri)
    if footer is None or footer[1].get("source") != source:
        return None
    stored = footer[1]
    report = parse_report({key: stored[key] for key in stored if key not in ("source", "on_bad")})
    if stored["on_bad"] not in ("", on_bad) or any(
        each.kind.startswith(_FILE_KINDS) for each in report.problems
    ):
        return None
    info = replace(report.info, size_bytes=storage.file_size(uri) or 0)
    return replace(report, info=info, was_reused=True, peak_rss_mb=peak_rss_mb())


def _unpack(packed: bytes) -> list[SourceImage]:
    return [
        SourceImage(entry, File(*image), None if label is None else File(*label))
        for entry, image, label in json.loads(zlib.decompress(packed))
    ]


def _read_files(
    images: list[SourceImage], mounts: dict[str, str]
) -> Iterator[tuple[SourceImage, FileContent, FileContent]]:
    """Read the image and label files of images, at most one row group in advance."""
    with FileReader() as reader, ThreadPoolExecutor(_READ_THREADS) as pool:

        def read(file: File | None) -> FileContent:
            if file is None:
                return FileContent(None)
            # One byte over the limit shows that the file is too long.
            return reader.read(mounts[file.mount], file.name, max_bytes=MAX_IMAGE_BYTES + 1)

        for start in range(0, len(images), ROW_GROUP_ROWS):
            group = images[start : start + ROW_GROUP_ROWS]
            contents = pool.map(read, [each.image for each in group])
            labels = pool.map(read, [each.label for each in group])
            yield from zip(group, contents, labels, strict=True)
