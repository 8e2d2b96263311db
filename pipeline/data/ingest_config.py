"""What to ingest: the flags of each verb of jobs/ingest.py, as frozen values."""

import shlex
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from pipeline.data.shards import ROW_GROUP_ROWS, OnBad
from pipeline.data.source_index import UNKNOWN_VALUE
from pipeline.data.validate_image import MAX_PIXELS
from pipeline.errors import DatasetError

_WIDEST_LIMIT = 2 * MAX_PIXELS
"""Pillow opens no larger image, whatever we allow."""

_MOST_CLASSES = UNKNOWN_VALUE


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig:
    """What all data sets have in common."""

    verb: ClassVar[str]
    """Of jobs/ingest.py."""

    root: str
    """Folder or URI of the data set."""
    split: str
    """Name of the split."""
    out: str
    """Folder or URI for the shards."""
    on_bad: OnBad = "stop"
    """stop: list what breaks a rule, and end. drop: leave it out. fix: cut boxes at the image's
    border, take the numbers of palettes, leave out the rest."""
    rows_per_shard: int = 0
    """Images of one shard, a multiple of 32; 0 chooses by the number of images."""
    max_pixels: int = MAX_PIXELS
    """A larger image is refused before it is decoded."""
    workers: int = -1
    """Shards made at once on Ray; -1 takes every CPU, 0 works in this process without Ray."""
    overwrite: bool = False
    """Replace a data set in out that was made from something else."""

    def __post_init__(self) -> None:
        wrong = self.wrong()
        if wrong:
            raise DatasetError("; ".join(wrong))

    def wrong(self) -> list[str]:
        """List the flags that break a rule."""
        wrong = []
        if self.rows_per_shard < 0 or self.rows_per_shard % ROW_GROUP_ROWS:
            wrong.append(
                f"rows-per-shard must be a multiple of {ROW_GROUP_ROWS}, got {self.rows_per_shard}"
            )
        if not 1 <= self.max_pixels <= _WIDEST_LIMIT:
            wrong.append(f"max-pixels must be in 1..{_WIDEST_LIMIT}, got {self.max_pixels}")
        if self.workers < -1:
            wrong.append(f"workers must be -1 or more, got {self.workers}")
        needed = ("root", "split", "out")
        return wrong + [f"{name} may not be empty" for name in needed if not getattr(self, name)]

    def command(self, on_bad: OnBad) -> str:
        """Give the command that runs this with another choice."""
        words = ["python", "jobs/ingest.py", self.verb]
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "on_bad" or value == each.default:
                continue
            words.append("--" + each.name.replace("_", "-"))
            if not isinstance(value, bool):
                words += map(str, value) if isinstance(value, tuple) else [str(value)]
        return shlex.join([*words, "--on-bad", on_bad])


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoIngest(IngestConfig):
    """A data set in the COCO layout: annotations/instances_SPLIT.json and SPLIT/*.jpg."""

    verb: ClassVar[str] = "coco"

    annotations: str = ""
    """Annotation file, where it is not annotations/instances_SPLIT.json under root."""
    images: str = ""
    """Folder of the images, where it is not SPLIT under root."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LvisIngest(IngestConfig):
    """LVIS: lvis_VERSION_SPLIT.json (or its zip), and COCO's train2017/ and val2017/ (or zips)."""

    verb: ClassVar[str] = "lvis"

    version: Literal["v1", "v0.5"] = "v1"
    """Which file is meant by SPLIT."""
    annotations: str = ""
    """Annotation file, where it is not lvis_VERSION_SPLIT.json under root."""
    images: str = ""
    """Folder with train2017/ and val2017/, or with the images themselves, where it is not root."""
    only_coco_categories: bool = False
    """LVIS*: keep all images and COCO's 80 categories, under COCO's ids, to measure models trained
    on COCO."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CityscapesIngest(IngestConfig):
    """Cityscapes' instances: leftImg8bit/SPLIT and gtFine/SPLIT, or the official zips."""

    verb: ClassVar[str] = "cityscapes"


@dataclass(frozen=True, kw_only=True, slots=True)
class CityscapesSemanticIngest(IngestConfig):
    """Cityscapes' label maps: leftImg8bit/SPLIT and gtFine/SPLIT, or the official zips."""

    verb: ClassVar[str] = "cityscapes-semantic"


@dataclass(frozen=True, kw_only=True, slots=True)
class BddIngest(IngestConfig):
    """BDD100K's 10,000 images and label maps: images/10k and labels/sem_seg/masks, or zips."""

    verb: ClassVar[str] = "bdd"


@dataclass(frozen=True, kw_only=True, slots=True)
class SemanticIngest(IngestConfig):
    """Your own images with label PNGs: images/SPLIT, labels/SPLIT and the names of the classes."""

    verb: ClassVar[str] = "semantic"

    images: str = ""
    """Folder of the images, where it is not images/SPLIT, SPLIT/images or images under root."""
    labels: str = ""
    """Folder of the label PNGs, where it is not labels/SPLIT, SPLIT/labels or labels under root."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their values from 0."""
    classes_file: str = ""
    """File with a class a line, NAME or VALUE NAME, where it is not classes.txt under root."""
    void: tuple[int, ...] = (255,)
    """Values that carry no class and no loss."""
    image_ending: str = ""
    """What stands between the common name and .jpg or .png of an image."""
    label_ending: str = ".png"
    """What follows the common name in a label's, such as _mask.png."""

    def wrong(self) -> list[str]:
        """List the flags that break a rule."""
        wrong = IngestConfig.wrong(self)
        if len(set(self.classes)) < len(self.classes):
            wrong.append("a name stands in classes twice")
        if len(self.classes) > _MOST_CLASSES:
            wrong.append(f"there may be {_MOST_CLASSES} classes, got {len(self.classes)}")
        if not all(0 <= value <= 255 for value in self.void):
            wrong.append(f"void values are in 0..255, got {self.void}")
        if not self.label_ending.lower().endswith(".png"):
            wrong.append(f"label-ending must end with .png, got {self.label_ending!r}")
        return wrong
