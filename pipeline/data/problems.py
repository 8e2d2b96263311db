"""What can be wrong with a data set: every kind by name, the table users see, and the rejects file.

Nothing is repaired or dropped without a row here. A kind is one of three: `stop` ends ingest
whatever the user chose, `bad` is dropped or fixed on request, `notice` is counted and kept.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

EXAMPLES = 3
"""Examples shown of each kind; rejects.parquet has them all."""

Entry = dict[str, Any]
"""A JSON object of an annotation file, or what stands for one where a source has no such file."""

INT64 = range(-(2**63), 2**63)

_SURROGATE = re.compile("[\ud800-\udfff]")

Severity = Literal["stop", "bad", "notice"]

KINDS: dict[str, tuple[Severity, str]] = {
    "path_outside_root": ("stop", "file_name leaves the image folder"),
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
    "image_missing": ("bad", "the image file is not there"),
    "image_unreadable": ("bad", "the image file cannot be decoded to its end"),
    "image_format": ("bad", "the image file is neither JPEG nor PNG"),
    "image_too_large": ("bad", "the image has more pixels or bytes than the limit"),
    "image_size": ("bad", "the image's size differs from the annotation file's"),
    "image_twice": ("bad", "two image files differ only in their ending; the first is kept"),
    "label_missing": ("bad", "the image's label file is not there"),
    "label_unreadable": ("bad", "the label file cannot be decoded to its end"),
    "label_format": ("bad", "the label file is no PNG with one gray channel"),
    "label_palette": (
        "bad",
        "the label has a palette; --on-bad fix takes the numbers of its colors as values",
    ),
    "label_depth": ("bad", "the label has another number of bits a pixel than it must have"),
    "label_size": ("bad", "the label's size differs from its image's"),
    "label_value": ("bad", "the label holds values that the table of classes does not have"),
    "polygon_file": ("bad", "the file holds no polygons as Cityscapes writes them"),
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
        "the box is far from the mask: off by more than 3 px, and IoU below 0.5",
    ),
    "box_off": ("notice", "the box is more than 3 px off the mask, and IoU is 0.5 or more"),
    "box_rounding": ("notice", "the box reaches up to 1 px outside the image"),
    "polygon_outside": ("notice", "a polygon reaches more than 1 px outside the image; cut there"),
    "label_void": ("notice", "no pixel of the label has a class"),
    "label_drawn": ("notice", "there is no instanceIds.png; it was drawn from polygons.json"),
    "image_turned": ("notice", "EXIF asks to turn the image; pixels are used as stored"),
}
"""Every kind of problem: how grave it is, and the rule in words."""

FIXABLE = frozenset({"box_outside", "label_palette"})
"""Kinds that --on-bad fix repairs; all others it drops."""

REJECTS_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        # Why this one, with the value.
        pa.field("reason", pa.string(), nullable=False),
        # "dropped", "fixed", or "found" where ingest stopped and dropped nothing.
        pa.field("action", pa.string(), nullable=False),
        pa.field("image_id", pa.int64()),
        pa.field("annotation_id", pa.int64()),
        pa.field("file_name", pa.string()),
        # The JSON entry as it came; an image's holds its annotations too.
        pa.field("raw", pa.string(), nullable=False),
    ]
)
"""A row of rejects.parquet: one for each problem that is no notice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that breaks a rule, and what it concerns."""

    kind: str
    reason: str
    image_id: int | None = None
    annotation_id: int | None = None
    file_name: str | None = None
    raw: str = ""
    action: str = "found"

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        return KINDS[self.kind][0]

    @property
    def subject(self) -> str:
        """What it concerns, in words."""
        parts = [] if self.annotation_id is None else [f"annotation {self.annotation_id}"]
        parts += [] if self.image_id is None else [f"image {self.image_id}"]
        name = self.file_name
        # A name from a file may hold anything, also what a terminal obeys.
        parts += [] if name is None else [name if name.isprintable() else repr(name)]
        return ", ".join(parts) or "annotation file"


def problem_of(kind: str, reason: str, entry: object, *, image: Entry | None = None) -> Problem:
    """Make the problem of an image entry, or of an annotation and its image, where known."""
    mine = entry if isinstance(entry, dict) else {}
    is_image = image is None and "file_name" in mine
    owner = mine if is_image else image or {}
    image_id = owner.get("id", None if is_image else mine.get("image_id"))
    return Problem(
        kind=kind,
        reason=shortened(reason),
        image_id=image_id if is_id(image_id) else None,
        annotation_id=None if is_image or not is_id(mine.get("id")) else mine["id"],
        file_name=owner["file_name"] if is_name(owner.get("file_name")) else None,
        raw=json.dumps(entry),
    )


def is_id(value: object) -> bool:
    """Tell whether a value from JSON can be an id."""
    return isinstance(value, int) and not isinstance(value, bool) and value in INT64


def is_name(value: object) -> bool:
    """Tell whether a value from JSON can be a name."""
    # A lone surrogate is JSON, but no text that can be written.
    return isinstance(value, str) and bool(value) and not _SURROGATE.search(value)


def shortened(text: str, limit: int = 160) -> str:
    """Cut a text that a file made long."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass(slots=True)
class Tally:
    """Counts and first examples by kind, of any number of problems, in little memory."""

    counts: Counter[str]
    examples: dict[str, list[str]]

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> "Tally":
        """Count problems."""
        tally = cls(Counter(), {})
        for problem in problems:
            tally.add(problem.kind, [f"{problem.subject}: {problem.reason}"], count=1)
        return tally

    def add(self, kind: str, examples: Sequence[str], *, count: int) -> None:
        """Count more of one kind."""
        self.counts[kind] += count
        kept = self.examples.setdefault(kind, [])
        kept.extend(examples[: EXAMPLES - len(kept)])

    def table(self) -> str:
        """Lay out kind, count, rule and first examples, gravest first."""
        order = [kind for kind in KINDS if self.counts[kind]]
        width = max((len(kind) for kind in order), default=4)
        lines = [f"{'kind':<{width}}  {'count':>7}  what"]
        for kind in order:
            severity, rule = KINDS[kind]
            mark = {"stop": "  (always stops)", "bad": "", "notice": "  (notice, kept)"}[severity]
            lines.append(f"{kind:<{width}}  {self.counts[kind]:>7}  {rule}{mark}")
            lines.extend(f"{'':<{width}}  {'':>7}    {text}" for text in self.examples[kind])
        return "\n".join(lines)

    def total(self, *severities: Severity) -> int:
        """Count all problems of the given severities."""
        return sum(n for kind, n in self.counts.items() if KINDS[kind][0] in severities)


def rejects_file(problems: Iterable[Problem]) -> bytes:
    """Write problems as the Parquet file beside the shards; equal problems give equal bytes."""
    rows = [asdict(problem) for problem in problems if problem.severity != "notice"]
    table = pa.Table.from_pylist(rows, schema=REJECTS_SCHEMA)
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
