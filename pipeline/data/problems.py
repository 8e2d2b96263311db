"""Problems of a data set: the table of kinds, their counts, and the rejects file.

Ingest repairs or drops nothing without a row here. A `stop` problem always ends ingest, a `bad` one
is dropped or fixed on request, a `notice` is counted and kept.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.annotation_rules import DEFAULTS
from pipeline.text import escape_controls, format_table

EXAMPLES = 3
"""Examples shown of each kind; rejects.parquet has them all."""

Entry = dict[str, Any]
"""A JSON object of an annotation file, or its equivalent where a source has no such file."""

INT64 = range(-(2**63), 2**63)

_SURROGATE = re.compile("[\ud800-\udfff]")

Severity = Literal["stop", "bad", "notice"]

KINDS: dict[str, tuple[Severity, str]] = {
    "path_outside_root": ("stop", "file_name is not a path under the image folder"),
    "category_entry": ("stop", "a category without integer id, without name, or with a used id"),
    "image_entry": ("bad", "an image entry has a missing key or a value of the wrong type"),
    "annotation_entry": ("bad", "an annotation has a missing key or a value of the wrong type"),
    "duplicate_image_id": ("bad", "an image id is used twice; the first is kept"),
    "duplicate_annotation_id": ("bad", "an annotation id is used twice; the first is kept"),
    "unknown_image": ("bad", "an annotation names an image that is not listed"),
    "unknown_category": (
        "bad",
        "an annotation, or a list of an image, names a category that is not listed",
    ),
    "image_missing": ("bad", "the image file is missing"),
    "image_unreadable": ("bad", "the image file cannot be decoded to its end"),
    "image_format": ("bad", "the image file is not a JPEG, PNG, WebP, TIFF or BMP"),
    "image_too_large": ("bad", "the image has more pixels or bytes than the limit"),
    "image_size": ("bad", "the image's size differs from the annotation file's"),
    "image_twice": ("bad", "two image files differ only in their ending; the first is kept"),
    "file_twice": ("bad", "two image entries name the same file; the first is kept"),
    "label_missing": ("bad", "the image's label file is missing"),
    "label_unreadable": ("bad", "the label file cannot be decoded to its end"),
    "label_format": ("bad", "the label file is not a PNG with one gray channel"),
    "label_palette": ("bad", "the label has a palette; --on-bad fix takes the palette indices"),
    "label_depth": ("bad", "the label has the wrong number of bits per pixel"),
    "label_size": ("bad", "the label's size differs from its image's"),
    "label_value": ("bad", "the label holds values that are not in the class table"),
    "polygon_file": ("bad", "the file is not a Cityscapes polygon file"),
    "not_finite": ("bad", "NaN or infinity"),
    "polygon_short": ("bad", "a polygon needs at least 6 numbers, and an even count"),
    "mask_format": (
        "bad",
        "the segmentation is neither polygons nor run lengths of the image's size",
    ),
    "mask_empty": ("bad", "the mask has no pixel"),
    "box_empty": ("bad", "the box has no area"),
    "box_outside": ("bad", "the box reaches more than 1 px outside the image"),
    "box_disagrees": (
        "bad",
        "the box is more than 3 px off the mask, and IoU is below 0.5",
    ),
    "box_off": ("notice", "the box is more than 3 px off the mask, and IoU is 0.5 or more"),
    "box_rounding": ("notice", "the box reaches up to 1 px outside the image"),
    "iscrowd_missing": ("notice", f"the annotation has no iscrowd; used {DEFAULTS['iscrowd']}"),
    "area_missing": ("notice", f"the annotation has no area; used {DEFAULTS['area']}"),
    "area_off": (
        "notice",
        "the area is below half or above twice the mask's; AP by object size uses it all the same",
    ),
    "object_twice": (
        "notice",
        "an object has the category and mask of another one of its image; both are kept",
    ),
    "polygon_outside": ("notice", "a polygon reaches more than 1 px outside the image; cut there"),
    "label_void": ("notice", "no pixel of the label has a class"),
    "label_drawn": ("notice", "instanceIds.png is missing; it was drawn from polygons.json"),
    "image_bits": ("notice", "the image has more than 8 bits per channel; the upper 8 are used"),
    "image_alpha": ("notice", "the image's alpha channel is dropped"),
    "image_palette": ("notice", "the image has a palette; its colors are used"),
    "image_cmyk": ("notice", "the image is CMYK; it becomes RGB without its color profile"),
    "image_pictures": ("notice", "the image file holds several pictures; the others are ignored"),
    "image_turned": ("notice", "EXIF orientation is ignored; pixels are used as stored"),
}
"""Severity and rule of every kind of problem, gravest first."""

FIXABLE = frozenset({"box_outside", "label_palette"})
"""Kinds that --on-bad fix repairs; it drops all others."""

REJECTS_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        # Includes the offending value.
        pa.field("reason", pa.string(), nullable=False),
        # "dropped", "fixed", or "found" when ingest stopped and dropped nothing.
        pa.field("action", pa.string(), nullable=False),
        pa.field("image_id", pa.int64()),
        pa.field("annotation_id", pa.int64()),
        pa.field("file_name", pa.string()),
        # The original JSON entry; an image's includes its annotations.
        pa.field("raw", pa.string(), nullable=False),
    ]
)
"""A row of rejects.parquet: one for each problem that is not a notice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One broken rule, and the image or annotation that breaks it."""

    kind: str
    reason: str
    image_id: int | None = None
    annotation_id: int | None = None
    file_name: str | None = None
    raw: str = ""
    action: str = "found"

    @property
    def severity(self) -> Severity:
        """The severity of its kind."""
        return KINDS[self.kind][0]

    @property
    def entry(self) -> Entry:
        """The entry of the image or annotation; empty if it is no JSON object."""
        entry = json.loads(self.raw or "null")
        return entry if isinstance(entry, dict) else {}

    @property
    def example(self) -> str:
        """One line for the user: annotation, image, file and reason."""
        parts = [] if self.annotation_id is None else [f"annotation {self.annotation_id}"]
        parts += [] if self.image_id is None else [f"image {self.image_id}"]
        name = self.file_name
        # File names are untrusted: control characters must not reach the terminal.
        parts += [] if name is None else [name if name.isprintable() else repr(name)]
        return f"{', '.join(parts) or 'annotation file'}: {self.reason}"


def make_problem(kind: str, reason: str, entry: object, *, image: Entry | None = None) -> Problem:
    """Make the problem of an image entry, or of an annotation and its image if known."""
    mine = entry if isinstance(entry, dict) else {}
    is_image = image is None and "file_name" in mine
    owner = mine if is_image else image or {}
    image_id = owner.get("id", None if is_image else mine.get("image_id"))
    return Problem(
        kind=kind,
        # A reason quotes the file, and a lone surrogate in it cannot be written.
        reason=shorten(escape_controls(reason)),
        image_id=image_id if is_id(image_id) else None,
        annotation_id=None if is_image or not is_id(mine.get("id")) else mine["id"],
        file_name=owner["file_name"] if is_name(owner.get("file_name")) else None,
        # Annotations may be a sequence that parses them one by one.
        raw=json.dumps(entry, default=list),
    )


def is_id(value: object) -> TypeGuard[int]:
    """Tell whether a JSON value can be an id."""
    return isinstance(value, int) and not isinstance(value, bool) and value in INT64


def is_side(value: object) -> TypeGuard[int]:
    """Tell whether a JSON value can be the height or width of an image."""
    return is_id(value) and 0 < value < 2**31


def is_name(value: object) -> TypeGuard[str]:
    """Tell whether a JSON value can be a name."""
    # JSON allows a lone surrogate, UTF-8 does not.
    return isinstance(value, str) and bool(value) and not _SURROGATE.search(value)


def shorten(text: str, limit: int = 160) -> str:
    """Cut a text of unknown length."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


class ProblemCounts:
    """Counts and first examples by kind of problem."""

    def __init__(self, problems: Iterable[Problem] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        for problem in problems:
            self.add(problem.kind, problem.example)

    def add(self, kind: str, *examples: str, count: int = 1) -> None:
        """Count problems of one kind."""
        self.counts[kind] += count
        kept = self.examples.setdefault(kind, [])
        kept.extend(examples[: EXAMPLES - len(kept)])

    def merge(self, other: "ProblemCounts") -> None:
        """Add the counts and examples of another."""
        for kind, count in other.counts.items():
            self.add(kind, *other.examples[kind], count=count)


def format_problems(problems: ProblemCounts) -> str:
    """Lay out kind, count, rule and first examples, gravest first."""
    rows = [("kind", "count", "what")]
    for kind, (severity, rule) in KINDS.items():
        if problems.counts[kind]:
            mark = {"stop": "  (always stops)", "bad": "", "notice": "  (notice, kept)"}[severity]
            rows.append((kind, str(problems.counts[kind]), rule + mark))
            rows.extend(("", "", f"  {example}") for example in problems.examples[kind])
            if more := problems.counts[kind] - len(problems.examples[kind]):
                rows.append(("", "", f"  and {more} more"))
    return "\n".join(format_table(rows, align="<><", min_width=7))


def count_severity(problems: ProblemCounts, *severities: Severity) -> int:
    """Count the problems of the given severities."""
    return sum(count for kind, count in problems.counts.items() if KINDS[kind][0] in severities)


def encode_rejects(problems: Iterable[Problem]) -> bytes:
    """Encode rejects.parquet; equal problems give equal bytes."""
    rows = [asdict(problem) for problem in problems if problem.severity != "notice"]
    table = pa.Table.from_pylist(rows, schema=REJECTS_SCHEMA)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
