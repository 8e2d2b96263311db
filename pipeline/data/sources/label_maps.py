"""Anyone's images with label maps: a folder of each, and the names of the classes."""

from pipeline import storage
from pipeline.data import dataset_files
from pipeline.data.ingest_config import SemanticIngest
from pipeline.data.manifest import Category
from pipeline.data.semantic_fields import VOID
from pipeline.data.source_index import UNKNOWN_VALUE, LabelRules, Listing
from pipeline.data.sources.pairs import Pairs, list_pairs
from pipeline.errors import DatasetError

_CLASSES_FILE = "classes.txt"

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
"""What is neither JPEG nor PNG is taken up too, to be told."""

_WHERE = "Pairs belong together by name; see python jobs/ingest.py semantic --help"


def list_label_maps(config: SemanticIngest) -> Listing:
    """List images with their label maps; a category's id is its value in a label.

    Raises:
        DatasetError: something of it is not there, or the classes are not clear.
        StorageError: it cannot be read.
    """
    classes = _classes(config)
    index_of_value = [UNKNOWN_VALUE] * 256
    for value in config.void:
        index_of_value[value] = VOID
    for index, value in enumerate(classes):
        index_of_value[value] = index
    return list_pairs(
        Pairs(
            images=_folder(config, config.images, "images"),
            labels=_folder(config, config.labels, "labels"),
            image_endings=tuple(config.image_ending + each for each in _IMAGE_ENDINGS),
            label_endings=(config.label_ending,),
        ),
        rules=LabelRules(index_of_value=tuple(index_of_value)),
        categories=tuple(
            Category(category_id=value, category_index=index, name=name)
            for index, (value, name) in enumerate(classes.items())
        ),
        title=f"images and labels of {config.split}",
        where=_WHERE,
    )


def _folder(config: SemanticIngest, given: str, kind: str) -> str:
    """Find the folder of images or labels: images/SPLIT, SPLIT/images, or images without parts."""
    if given:
        if dataset_files.is_there(given):
            return given
        raise DatasetError(f"{given} is not there; name another folder with --{kind}")
    found = dataset_files.find_folder(
        config.root, f"{kind}/{config.split}", f"{config.split}/{kind}"
    )
    if found:
        return found
    whole = dataset_files.find_folder(config.root, kind)
    if whole and dataset_files.list_files(whole, recursive=False):
        return whole
    there = dataset_files.list_names(storage.join(config.root, kind)) or dataset_files.list_names(
        config.root
    )
    raise DatasetError(
        f"{config.root} has neither {kind}/{config.split} nor {config.split}/{kind}, and no files "
        f"in {kind} itself (there are: {', '.join(there[:10]) or 'none'}); choose another --split, "
        f"or name the folder with --{kind}"
    )


def _classes(config: SemanticIngest) -> dict[int, str]:
    """Give the name of each value that is a class, by rising value."""
    named = dict(enumerate(config.classes)) if config.classes else _read_classes(config)
    both = sorted(named.keys() & set(config.void))
    if both:
        raise DatasetError(f"{both} are values of classes and in --void; they must be one of both")
    return dict(sorted(named.items()))


def _read_classes(config: SemanticIngest) -> dict[int, str]:
    place = config.classes_file or storage.join(config.root, _CLASSES_FILE)
    if not storage.exists(place):
        raise DatasetError(
            f"{place} is not there; name the classes in the order of their values with --classes "
            "road car ..., or put one a line into a file and name it with --classes-file"
        )
    text = storage.read_bytes(place).decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parts = [line.split(maxsplit=1) for line in lines]
    if all(len(part) == 2 and part[0].isdecimal() for part in parts):
        named = {int(value): name for value, name in parts}
    else:
        named = dict(enumerate(lines))
    rules = [
        (len(lines) > 0, "it is empty"),
        (len(named) == len(lines), "a value stands there twice"),
        (len(set(named.values())) == len(named), "a name stands there twice"),
        (all(0 <= value < VOID for value in named), f"values go from 0 to {VOID - 1}"),
        (len(named) <= UNKNOWN_VALUE, f"there may be {UNKNOWN_VALUE} classes"),
    ]
    wrong = [told for holds, told in rules if not holds]
    if wrong:
        raise DatasetError(
            f"{place}: {'; '.join(wrong)}. Write one class a line: NAME, or VALUE NAME"
        )
    return named
