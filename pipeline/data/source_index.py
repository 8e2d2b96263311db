"""The index of a source: its images and the files of each, made before a file is opened.

A source is a function from an IngestConfig to a SourceIndex. Many processes read the files and turn
them into rows (pipeline/data/shards.py); besides an image's entry they need the source's rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from posixpath import normpath
from typing import ClassVar, NamedTuple

from pipeline.data.dataset_files import list_files
from pipeline.data.manifest import Category
from pipeline.data.photo import PHOTO_ENDINGS
from pipeline.data.problems import Entry, Problem
from pipeline.data.schema import Task
from pipeline.errors import StorageError


class File(NamedTuple):
    """A file of a data set: a name under one of the index's mounts."""

    mount: str
    name: str


class SourceImage(NamedTuple):
    """An image of a source."""

    entry: Entry
    """At least id and file_name; further keys depend on the source's rules."""
    image: File
    label: File | None = None
    """Its label file, if labels are files of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationRules:
    """Entries hold height, width and annotations in COCO's format."""

    task: ClassVar[Task] = "instance"
    fix: ClassVar[str] = "cuts boxes that reach outside at the image's border"

    category_index: dict[int, int]
    """By category_id."""
    federated: bool = False
    """Entries also hold LVIS's lists, schema.FEDERATED."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameRules:
    """Label files are instanceIds.png or polygons.json of Cityscapes."""

    task: ClassVar[Task] = "instance"
    fix: ClassVar[str] = ""
    federated: ClassVar[bool] = False


UNKNOWN_VALUE = 254
"""Marks a value that is in no table, so there may be 254 classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRules:
    """Label files are PNGs with one class per pixel."""

    task: ClassVar[Task] = "semantic"
    fix: ClassVar[str] = "takes palette indices as values"
    federated: ClassVar[bool] = False

    index_of_value: tuple[int, ...]
    """256 long: category_index, 255 for no class, or UNKNOWN_VALUE."""

    @classmethod
    def of(cls, index_of_value: Mapping[int, int]) -> "LabelRules":
        """Make the rules from the category_index, or 255, of each known value."""
        return cls(
            index_of_value=tuple(index_of_value.get(value, UNKNOWN_VALUE) for value in range(256))
        )


Rules = AnnotationRules | FrameRules | LabelRules
"""How rows are made. `fix` says what --on-bad fix repairs; empty if it only drops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceIndex:
    """Everything a data set lists, in order of image id, and the problems of the list itself."""

    rules: Rules
    categories: tuple[Category, ...]
    images: list[SourceImage]
    mounts: dict[str, str]
    """URI by mount name. Rows do not depend on it."""
    problems: list[Problem]
    listed_images: int
    """Entries in the source, valid or not."""
    listed_annotations: int | None
    """None if only the label files tell."""
    title: str
    """Description of the source for messages."""
    source: str
    """Identifies the content of the list, independent of its location."""
    download: str = ""
    """Where users get missing files."""


def find_unlisted(index: SourceIndex, mount: str) -> list[str]:
    """List the photos of a folder that no entry names, not even a refused one.

    Empty if the store does not list its files.
    """
    names = {normpath(each.image.name) for each in index.images}
    names |= {normpath(each.file_name) for each in index.problems if each.file_name}
    try:
        found = list_files(index.mounts[mount])
    except StorageError:  # a store may let its files be read, but not listed
        return []
    return [each for each in found if each.lower().endswith(PHOTO_ENDINGS) and each not in names]
