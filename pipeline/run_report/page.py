"""The page of a report: its parts, and how they become one HTML file.

Every text is escaped by the template, also names of files and categories from data sets.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from pipeline import checksums, storage
from pipeline.run_report.charts import Chart

REPORT_FILE = "report.html"

_QUALITY = 82


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table; its header is the first row."""

    rows: Sequence[Sequence[str]]
    is_numeric: bool = True
    """Whether all columns but the first are numbers."""
    folded: str = ""
    """Text of the line that unfolds a long table; "" shows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture that a click enlarges."""

    data_uri: str
    caption: str
    width_px: int
    height_px: int
    tags: tuple[str, ...] = ()
    """What the section's filters select."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of a page under one heading."""

    title: str
    text: str = ""
    """What the reader sees, and how it was made."""
    gaps: Sequence[str] = ()
    """What this run does not have, and why."""
    cards: Sequence[tuple[str, str]] = ()
    """Label and number of the most important results."""
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    legend: Sequence[tuple[str, str]] = ()
    """CSS color and meaning, for pictures."""
    filters: Sequence[tuple[str, Sequence[str]]] = ()
    """Label and tags of each list from which readers choose the pictures to see."""
    pictures: Sequence[tuple[str, Sequence[Picture]]] = ()
    """Pictures under headings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    sections: Sequence[Section] = field(default_factory=tuple)


def render(page: Page) -> bytes:
    """Render a page as one HTML file without references to any other."""
    return _load_template().render(page=page).encode()


def write_page(page: Page, *, folder: str = "", out: str = "") -> str:
    """Write a page as report.html into the folder of a run, or as another file.

    Returns:
        The URI of the file.

    Raises:
        StorageError: it cannot be written.
    """
    if out:
        uri = storage.absolute(out)
        # No checksums: they would be a second file in a folder of the user.
        storage.write_bytes_atomic(uri, render(page))
        return uri
    uri = storage.join(folder, REPORT_FILE)
    checksums.write_file(uri, render(page))
    return uri


def encode_picture(picture: Image.Image, caption: str, *, tags: tuple[str, ...] = ()) -> Picture:
    """Encode a picture as JPEG in a data URI; for the tags see `Picture`."""
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=_QUALITY, optimize=True)
    text = base64.b64encode(encoded.getvalue()).decode()
    return Picture(
        data_uri=f"data:image/jpeg;base64,{text}",
        caption=caption,
        width_px=picture.width,
        height_px=picture.height,
        tags=tags,
    )


@cache
def _load_template() -> Template:
    environment = Environment(
        loader=PackageLoader("pipeline.run_report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["slug"] = lambda text: Markup(  # noqa: S704  letters and hyphens
        "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
    )
    return environment.get_template("page.html")
