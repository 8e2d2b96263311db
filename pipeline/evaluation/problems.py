"""What can be wrong with files to evaluate: kinds, each with its rule, and one error for all."""

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
    "image that is not of LVIS": "an LVIS image lists the categories that are surely not in it "
    "(neg_category_ids) and those not fully marked (not_exhaustive_category_ids); for a truth of "
    "COCO take --metric segm, bbox or boundary",
    "category without frequency": "an LVIS category says r, c or f: rare, common or frequent",
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
    # Folders, frame by frame.
    "folder without truth": "a truth of Cityscapes is the folder of a split, such as gtFine/val, "
    "with a folder for each city; if this is what a model gave, swap the folders",
    "folder without label maps": "label maps are PNG files; name the folder that they are in",
    "folder without submission": "a submission has one txt for each frame, named CITY_123456_123456"
    "*.txt, with lines of mask path, class id, score; if this is the truth, swap the folders",
    "truth given as detections": "name the folder of what a model gave; its files do not have "
    "_gtFine_ in their names",
    "name that tells no frame": "names start with the frame's: CITY_123456_123456",
    "frame without detections": "every frame of the truth needs its file, also where nothing was "
    "found; for a part of the frames, make a folder with the truth of that part",
    "frame that the truth does not have": "are both of one split?",
    "several files of one frame": "a frame has one; move what is no label map elsewhere",
    "image that cannot be read": "masks, instance maps and label maps are PNGs with one value a "
    "pixel; copy it again, and compare its size with the original's",
    "instance map that is not of 16 bits": "instance maps hold label id * 1000 + number, in 16-bit "
    "PNGs named *_gtFine_instanceIds.png; 8 bits are those of a label map",
    "instance id of no class": "an id is label id * 1000 + number for an object, the label id "
    "alone for everything else; label ids run from 0 to 33",
    "line of no known form": "a line is: path of the mask, class id, score; with blanks between",
    "mask path that leads outside": "paths start at the txt's folder and stay in the submission",
    "same mask twice": "a mask is one detection; write each to its own file",
    "class id outside the table": "class ids are Cityscapes' label ids: 24 person, 25 rider, "
    "26 car, 27 truck, 28 bus, 31 train, 32 motorcycle, 33 bicycle",
    "class ids without instances": "nothing is left to evaluate; ids are label ids (24 person to "
    "33 bicycle), not train ids (11 person to 18 bicycle)",
    "mask of another size": "masks have the size of the frame",
    "label map that is not of 8 bits": "a label map is a PNG with one value of 8 bits a pixel; a "
    "colored picture of it, or an instance map, holds others",
    "label map of another size": "predictions have the size of the truth; resize them, by the "
    "nearest pixel",
    "label value outside the table": "train ids of Cityscapes and BDD are 0 to 18 and 255, label "
    "ids of Cityscapes 0 to 33, N classes 0 to N - 1 and 255 for void; say which these are with "
    "--classes, --truth-ids and --detections-ids",
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

    def absorb(self, more: "Faults") -> None:
        """Add the faults of a part of the same file or folder."""
        for kind, (count, places) in more.by_kind().items():
            self._counts[kind] = self._counts.get(kind, 0) + count
            examples = self._examples.setdefault(kind, [])
            examples += places[: EXAMPLES - len(examples)]

    def by_kind(self) -> dict[str, tuple[int, list[str]]]:
        """Give the count and the first places of each kind."""
        return {kind: (count, self._examples[kind]) for kind, count in self._counts.items()}

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
