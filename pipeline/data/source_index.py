"""What a source lists: its images with the files that belong to each, before a file is opened.

A source is a function from what the user typed to a Listing. The files are read, checked and made
into rows elsewhere (pipeline/data/shards.py), by many processes; what these must know beside the
entry of an image are the rules of its source.
"""

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.data.manifest import Category
from pipeline.data.problems import Entry, Problem
from pipeline.data.schema import Task


class File(NamedTuple):
    """A file of a data set: a name under one of the listing's mounts."""

    mount: str
    name: str


class Listed(NamedTuple):
    """An image that a source lists."""

    entry: Entry
    """At least id and file_name; what else, the source's rules say."""
    image: File
    label: File | None = None
    """The file with its annotations, where it has one of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotationRules:
    """Entries hold height, width and annotations, as COCO writes them."""

    category_index: dict[int, int]
    """By category_id."""
    federated: bool = False
    """Entries hold the lists of FEDERATED too, as LVIS writes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameRules:
    """Label files are instanceIds.png or polygons.json of Cityscapes."""


UNKNOWN_VALUE = 254
"""Stands for a value that is in no table; so there may be 254 classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRules:
    """Label files are PNGs with one class a pixel."""

    index_of_value: tuple[int, ...]
    """256 long: category_index, 255 for no class, or UNKNOWN_VALUE."""


Rules = AnnotationRules | FrameRules | LabelRules


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Everything that a data set lists, in order of image id, and what is wrong with the list."""

    rules: Rules
    categories: tuple[Category, ...]
    images: list[Listed]
    mounts: dict[str, str]
    """Where files lie, by the name that they use. It takes no part in what rows hold."""
    problems: list[Problem]
    listed_images: int
    """Entries in the source, sound or not."""
    listed_annotations: int | None
    """None where only files tell."""
    title: str
    """What was read, in words."""
    source: str
    """Names the content of the list, without naming its place."""
    where: str = ""
    """Where users get files that are missing."""


def task_of(rules: Rules) -> Task:
    """Tell what kind of rows the images become."""
    match rules:
        case AnnotationRules() | FrameRules():
            return "instance"
        case LabelRules():
            return "semantic"


def is_federated(rules: Rules) -> bool:
    """Tell whether rows say which categories were looked for."""
    return isinstance(rules, AnnotationRules) and rules.federated
