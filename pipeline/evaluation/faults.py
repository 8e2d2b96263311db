"""What can be wrong with COCO files: each kind with its rule, and one error that tells them all."""

from collections.abc import Sequence

from pipeline.errors import DatasetError

EXAMPLES = 3
"""Places shown of each kind."""

RULES = {
    "not a list": "a results file is a list of detections; if this is the truth, swap the files",
    "not a truth": "a truth is an object with lists of images, annotations and categories; if this "
    "is the list of detections, swap the files",
    "nothing to evaluate against": "a truth needs annotations; take the file with labels "
    "(instances_val2017.json, not image_info_test-dev2017.json)",
    "not an object": "every entry is an object of named values",
    "missing key": "write the named keys into every such entry",
    "id that is not a number": "ids of images, categories and annotations are whole numbers",
    "same id twice": "an id names one entry; give each its own",
    "image without size": "an image needs height and width, whole numbers above 0",
    "unknown image_id": "it must be the id of one of the truth's images; are both of one split?",
    "unknown category_id": "it must be the id of one of the truth's categories, not an index that "
    "counts from 0 or 1; COCO's 80 ids run to 90",
    "score that is not a finite number": "detections are ranked by score; drop these, or find out "
    "why the model gives them",
    "broken bbox": "a bbox is [x, y, width, height] in pixels: finite numbers, no side negative",
    "broken area": "an area is a number of pixels, not negative",
    "broken iscrowd": "iscrowd is 0 or 1",
    "segmentation of no known form": "it is a list of polygons, or an object of size and counts",
    "segmentation of another size": "size is [height, width] of the original image; encode masks "
    "at that size, height first",
    "broken run lengths": "counts must describe every pixel of the image once; encode them again, "
    "for instance with pycocotools.mask.encode",
    "broken polygon": "a segmentation has at least one polygon, a polygon [x1, y1, x2, y2, ...] at "
    "least 6 numbers, and none is far outside the image",
}


class Faults:
    """What is wrong with one file, by kind."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._examples: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        """Count kinds."""
        return len(self._counts)

    def add(self, kind: str, where: str) -> None:
        """Note a fault.

        Args:
            kind: one of RULES.
            where: place and value.
        """
        self._counts[kind] = self._counts.get(kind, 0) + 1
        examples = self._examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(where)

    def lines(self) -> list[str]:
        """Lay out each kind with its count, first places and rule."""
        lines = []
        for kind, examples in self._examples.items():
            lines.append(f"  {self.file}: {kind}, {self._counts[kind]} in all")
            lines += [f"    {example}" for example in examples]
            lines.append(f"    rule: {RULES[kind]}")
        return lines


def raise_all(faults: Sequence[Faults]) -> None:
    """Raise one error that tells the faults of all files, if there are any.

    Raises:
        DatasetError: there are.
    """
    total = sum(len(each) for each in faults)
    if total:
        head = f"{total} kind{'s' if total > 1 else ''} of fault; nothing was evaluated"
        raise DatasetError("\n".join([head, *(line for each in faults for line in each.lines())]))


def short(value: object) -> str:
    """Show a value of unknown length in one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
