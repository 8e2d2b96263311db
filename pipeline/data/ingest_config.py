"""The flags of each verb of jobs/ingest.py."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal, TypeAlias

from annotated_types import Ge, Interval, MinLen, MultipleOf

from bsm.configs.rules import Config, NonNegativeInt
from pipeline.data.photo import MAX_PIXELS
from pipeline.data.shards import ROW_GROUP_ROWS, OnBad
from pipeline.data.source_index import UNKNOWN_VALUE
from pipeline.errors import DatasetError

_PixelLimit: TypeAlias = Annotated[int, Interval(ge=1, le=2 * MAX_PIXELS)]
"""Prediction and --deep audits take images up to the same limit."""

_NonEmpty: TypeAlias = Annotated[str, MinLen(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestConfig(Config):
    """The flags that all data sets share."""

    error_type: ClassVar[type[Exception]] = DatasetError

    verb: ClassVar[str]
    """Verb of jobs/ingest.py."""

    root: _NonEmpty
    """Folder or URI of the data set."""
    split: _NonEmpty
    """Name of the split."""
    out: _NonEmpty
    """Folder or URI for the shards."""
    on_bad: OnBad = "stop"
    """stop: list the problems and end. drop: leave out invalid data. fix: clip boxes to the image,
    read palette indices as labels, leave out the rest."""
    rows_per_shard: Annotated[NonNegativeInt, MultipleOf(ROW_GROUP_ROWS)] = 0
    """Images per shard, a multiple of 32; 0 chooses by the number of images."""
    max_pixels: _PixelLimit = MAX_PIXELS
    """Reject larger images before they are decoded."""
    workers: Annotated[int, Ge(-1)] = -1
    """Parallel Ray tasks, one shard each; 0 works in this process without Ray. -1 does so for 15 s
    and leaves the rest to Ray on every CPU."""
    overwrite: bool = False
    """Replace a data set in out that was made from something else."""

    def command(self, on_bad: OnBad) -> str:
        """Return the command that runs this with another choice of --on-bad."""
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
    """Annotation file; "" is annotations/instances_SPLIT.json under root."""
    images: str = ""
    """Folder of the images; "" is SPLIT under root."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LvisIngest(IngestConfig):
    """LVIS: lvis_VERSION_SPLIT.json (or its zip), and COCO's train2017/ and val2017/ (or zips)."""

    verb: ClassVar[str] = "lvis"

    version: Literal["v1", "v0.5"] = "v1"
    """Version of LVIS."""
    annotations: str = ""
    """Annotation file; "" is lvis_VERSION_SPLIT.json under root."""
    images: str = ""
    """Folder with train2017/ and val2017/, or with the images themselves; "" is root."""
    only_coco_categories: bool = False
    """LVIS*: keep all images and COCO's 80 categories with COCO's ids, to evaluate COCO's
    models."""


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
    """Your own images with label PNGs: images/SPLIT, labels/SPLIT and class names."""

    verb: ClassVar[str] = "semantic"

    images: str = ""
    """Folder of the images; "" is images/SPLIT, SPLIT/images or images under root."""
    labels: str = ""
    """Folder of the label PNGs; "" is labels/SPLIT, SPLIT/labels or labels under root."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their label values from 0."""
    classes_file: str = ""
    """File with one class per line, NAME or VALUE NAME; "" is classes.txt under root."""
    void: tuple[Annotated[int, Interval(ge=0, le=255)], ...] = (255,)
    """Label values without a class, which are ignored."""
    image_ending: str = ""
    """Suffix of an image between the common name and .jpg or .png."""
    label_ending: str = ".png"
    """Suffix of a label PNG after the common name, such as _mask.png."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check the classes and the ending of the labels."""
        if len(set(self.classes)) < len(self.classes):
            yield "classes", f"must not repeat a name, got {self.classes}"
        if len(self.classes) > UNKNOWN_VALUE:
            yield "classes", f"needs at most {UNKNOWN_VALUE} names, got {len(self.classes)}"
        if not self.label_ending.lower().endswith(".png"):
            yield "label_ending", f"must end with .png, got {self.label_ending!r}"
