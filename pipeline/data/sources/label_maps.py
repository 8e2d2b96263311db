"""Custom label maps: a folder of images, a folder of labels, and the class names."""

from pipeline import storage
from pipeline.data import dataset_files
from pipeline.data.class_list import parse_class_list, read_class_list
from pipeline.data.ingest_config import SemanticIngest
from pipeline.data.manifest import Category
from pipeline.data.photo import PHOTO_ENDINGS
from pipeline.data.semantic_fields import VOID
from pipeline.data.source_index import LabelRules, SourceIndex
from pipeline.data.sources.pairs import Pairs, list_pairs
from pipeline.errors import DatasetError

_CLASSES_FILE = "classes.txt"

_IMAGE_ENDINGS = (*PHOTO_ENDINGS, ".gif", ".heic", ".avif")
"""Other image formats are listed too, so that they can be reported."""

_DOWNLOAD = "Files are paired by name; see python jobs/ingest.py semantic --help"


def list_label_maps(config: SemanticIngest) -> SourceIndex:
    """List images with their label maps; the category_id is the value in a label.

    Raises:
        DatasetError: a folder is missing, or the classes are not valid.
        StorageError: a file cannot be read.
    """
    classes = _read_classes(config)
    index_of_value = dict.fromkeys(config.void, VOID)
    index_of_value |= {value: index for index, value in enumerate(classes)}
    return list_pairs(
        Pairs(
            images=_find_folder(config, config.images, "images"),
            labels=_find_folder(config, config.labels, "labels"),
            image_endings=tuple(config.image_ending + each for each in _IMAGE_ENDINGS),
            label_endings=(config.label_ending,),
        ),
        rules=LabelRules.of(index_of_value),
        categories=tuple(
            Category(category_id=value, category_index=index, name=name)
            for index, (value, name) in enumerate(classes.items())
        ),
        title=f"images and labels of {config.split}",
        download=_DOWNLOAD,
    )


def _find_folder(config: SemanticIngest, given: str, kind: str) -> str:
    """Find the folder of images or labels: images/SPLIT, SPLIT/images, or images."""
    if given:
        if dataset_files.exists(given):
            return given
        raise DatasetError(f"{given} does not exist; name another folder with --{kind}")
    root, split = config.root, config.split
    of_split = dataset_files.find_folder(root, f"{kind}/{split}", f"{split}/{kind}")
    if of_split:
        return of_split
    whole = dataset_files.find_folder(root, kind)
    if whole and dataset_files.list_files(whole, recursive=False):
        return whole
    entries = dataset_files.list_entries(storage.join(root, kind))
    entries = entries or dataset_files.list_entries(root)
    raise DatasetError(
        f"{root} has neither {kind}/{split} nor {split}/{kind}, and no files in {kind} itself "
        f"(it has: {', '.join(entries[:10]) or 'nothing'}); choose another --split, or name the "
        f"folder with --{kind}"
    )


def _read_classes(config: SemanticIngest) -> dict[int, str]:
    """Return the class names by label value, ascending."""
    names = (
        parse_class_list(config.classes, where="--classes")
        if config.classes
        else _read_classes_file(config)
    )
    both = sorted(names.keys() & set(config.void))
    if both:
        raise DatasetError(
            f"label values {both} are classes and in --void; remove them from one of the two"
        )
    return dict(sorted(names.items()))


def _read_classes_file(config: SemanticIngest) -> dict[int, str]:
    uri = config.classes_file or storage.join(config.root, _CLASSES_FILE)
    if not storage.exists(uri):
        raise DatasetError(
            f"{uri} does not exist; name the classes in the order of their values with --classes "
            "road car ..., or write one per line into a file and name it with --classes-file"
        )
    return read_class_list(uri)
