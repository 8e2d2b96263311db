"""Problems of files to evaluate: the rule behind every kind, and one error for all of them."""

from collections.abc import Sequence

from pipeline.data.problems import ProblemCounts, shorten
from pipeline.errors import DatasetError

RULES = {
    "not a list": "a results file is a list of detections; if this is the truth, swap the files",
    "not an annotation file": "an annotation file is an object with lists of images, annotations "
    "and categories; if this is the list of detections, swap the files",
    "no annotations": "use the annotation file with labels (instances_val2017.json, not "
    "image_info_test-dev2017.json)",
    "no objects": "crowds, unlabeled pixels and, in LVIS, areas of 0 are ignored, so nothing can "
    "be measured; if crowds are single objects, as in brush masks of CVAT, write iscrowd 0; in "
    "masks of 0 and 255, 255 is void, so write the class's value in place of 255",
    "not an object": "every entry is a JSON object",
    "missing key": "add the named keys to every such entry",
    "id is not an integer": "ids of images, categories and annotations are integers of at most 64 "
    "bits",
    "duplicate id": "every entry has an id of its own",
    "image without size": "an image needs height and width, integers above 0, with at most 2^30 "
    "pixels",
    "unknown image_id": "it must be the id of an image in the truth; are both files of the same "
    "split?",
    "unknown category_id": "it must be the id of a category in the truth, not an index that starts "
    "at 0 or 1; COCO's 80 ids go up to 90",
    "image without LVIS fields": "an LVIS image lists the categories that are not in it "
    "(neg_category_ids) and those that are not exhaustively annotated "
    "(not_exhaustive_category_ids); for COCO annotations use --metric segm, bbox or boundary",
    "category without frequency": "an LVIS category has a frequency: r, c or f for rare, common or "
    "frequent",
    "score is not finite": "detections are ranked by score; remove these, or find out why the "
    "model produces them",
    "invalid bbox": "a bbox is [x, y, width, height] in pixels: finite numbers, no side negative",
    "invalid area": "an area is a number of pixels, not negative",
    "invalid iscrowd": "iscrowd is 0 or 1",
    "unknown segmentation format": "use a list of polygons, or an object with size and counts",
    "wrong segmentation size": "size is [height, width] of the original image; encode masks at "
    "that size, height first",
    "invalid RLE": "counts must cover every pixel of the image once; encode the mask again, for "
    "example with pycocotools.mask.encode",
    "invalid polygon": "a segmentation has at least one polygon, a polygon [x1, y1, x2, y2, ...] "
    "at least 6 numbers, and no point is far outside the image",
    # Photos.
    "missing photo": "--images has a photo for each image: by the file_name in the truth, the "
    "annotation file or the row, else by a file name that ends with the id, such as "
    "000000000139.jpg; a label PNG has the path of its photo",
    "several photos for one image": "an image has one photo; move the others elsewhere, or name it "
    "by file_name",
    "unreadable photo": "photos are JPEG, PNG, WebP, TIFF or BMP; copy the file again",
    "wrong photo size": "masks belong to the photo as stored, without EXIF rotation; use the very "
    "photos that they were made on",
    # Folders.
    "no ground truth in the folder": "name the folder of a Cityscapes split, such as gtFine/val, "
    "with one folder per city; if this is the model's output, swap the folders",
    "no label maps in the folder": "label maps are PNG files; name the folder that holds them",
    "no submission in the folder": "a submission has one txt per frame, named "
    "CITY_123456_123456*.txt, with lines of mask path, class id, score; if this is the truth, swap "
    "the folders",
    "ground truth among the detections": "name the folder of the model's output; its files do not "
    "have _gtFine_ in their names",
    "no frame in the file name": "file names start with the frame: CITY_123456_123456",
    "frame without detections": "every frame of the truth needs a file, even without any "
    "detection; to evaluate some of the frames, make a folder with their truth",
    "frame not in the truth": "are both folders of the same split?",
    "several files for one frame": "a frame has one file; move other files elsewhere",
    "unreadable image": "masks, instance maps and label maps are PNGs with one value per pixel; "
    "copy the file again, and compare its size with the original's",
    "unreadable file": "copy the file again, or write the submission again",
    "instance map is not 16-bit": "instance maps hold label id * 1000 + number, in 16-bit PNGs "
    "named *_gtFine_instanceIds.png; an 8-bit PNG is a label map",
    "unknown instance id": "an id is label id * 1000 + number for an object, and the label id "
    "alone for everything else; label ids are 0 to 33",
    "malformed line": "a line is: mask path, class id, score; separated by blanks",
    "mask path outside the submission": "paths are relative to the txt's folder and stay inside "
    "the submission",
    "mask used twice": "a mask is one detection; write each to a file of its own",
    "unknown class id": "class ids are Cityscapes' label ids: 24 person, 25 rider, 26 car, "
    "27 truck, 28 bus, 31 train, 32 motorcycle, 33 bicycle",
    "no class with instances": "nothing is left to evaluate; ids are label ids (24 person to "
    "33 bicycle), not train ids (11 person to 18 bicycle)",
    "wrong mask size": "masks have the size of the frame",
    "label map is not 8-bit": "a label map is a PNG with one 8-bit value per pixel, not a colored "
    "picture or an instance map",
    "wrong label map size": "predictions have the size of the truth; resize them with "
    "nearest-neighbor interpolation",
    "unknown label value": "train ids of Cityscapes and BDD are 0 to 18 and 255, label ids of "
    "Cityscapes 0 to 33, N classes 0 to N - 1 and 255 for void; choose with --classes, "
    "--truth-ids and --detections-ids",
}
"""Rule by kind of problem."""


class Problems(ProblemCounts):
    """Problems of one file or folder; each kind is a key of RULES."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.palettes = 0
        """Label maps with a palette, whose indices were taken."""

    def format(self) -> list[str]:
        """Format each kind with its count, first examples and rule."""
        lines = []
        for kind, count in self.counts.items():
            lines.append(f"  {self.file}: {kind} ({count})")
            lines += [f"    {example}" for example in self.examples[kind]]
            lines.append(f"    rule: {RULES[kind]}")
        return lines

    def merge(self, other: ProblemCounts) -> None:
        """Add the counts and examples of another."""
        super().merge(other)
        self.palettes += other.palettes if isinstance(other, Problems) else 0


def raise_all(problems: Sequence[Problems], *, done: str = "evaluated") -> None:
    """Raise one error with the problems of all files, if there are any.

    Args:
        problems: of each file.
        done: what was not done because of them.

    Raises:
        DatasetError: there are problems.
    """
    total = sum(len(each.counts) for each in problems)
    if total:
        head = f"{total} kind{'s' if total > 1 else ''} of problem; nothing was {done}"
        raise DatasetError(
            "\n".join([head, *(line for each in problems for line in each.format())])
        )


def show_value(value: object) -> str:
    """Show a value of unknown length on one line."""
    return shorten(repr(value), 60)
