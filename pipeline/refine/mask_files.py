"""Masks of COCO files: results, annotations, or the detections.json of jobs/predict.py.

Everything is checked before the work starts, and one error lists all problems. Of a refined mask
only the segmentation changes, and for an annotation its bbox and area, which belong to its mask.
Rows keep their order and all other keys.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools import mask as mask_api

from pipeline import checksums
from pipeline.data.annotation_rules import is_crowd
from pipeline.data.problems import is_id
from pipeline.evaluation.coco_files import read_json
from pipeline.evaluation.mask_refinement import RefinedMask, to_segmentation
from pipeline.evaluation.problems import Problems, raise_all, show_value
from pipeline.evaluation.rle import SegmentationError, to_rle
from pipeline.refine.photo_finder import PhotoFinder
from pipeline.refine.photo_masks import ObjectMask, PhotoMasks

Entry = dict[str, Any]


class MaskFile:
    """Rows or annotations of a COCO file, by photo."""

    def __init__(
        self,
        uri: str,
        photos: PhotoFinder,
        *,
        out_uri: str,
        truth: Mapping[str, Any] | None = None,
        are_annotations: bool = False,
    ) -> None:
        """Read and check a file.

        Args:
            uri: the file.
            photos: where its photos are.
            out_uri: the file to write.
            truth: content of a checked COCO annotation file. It also names the photos, as the
                file itself does if it lists images.
            are_annotations: the file is an annotation file; else it holds detections.

        Raises:
            DatasetError: all problems of the file and its photos.
            StorageError: the file cannot be read.
        """
        self._out_uri, self._are_annotations = out_uri, are_annotations
        self._content, problems = read_json(uri), Problems(uri)
        self.entries = _find_entries(self._content, problems, are_annotations=are_annotations)
        raise_all([problems], done="refined")
        self.counts = {"crowds": 0, "empty": 0}
        places = self._group_by_image(problems)
        images = truth or (self._content if isinstance(self._content, dict) else {})
        listed = {each["id"]: each for each in images.get("images", []) if _has_id(each)}
        self._places: list[list[int]] = []
        self.photos: list[PhotoMasks] = []
        true_objects = _group_truth(truth) if truth else {}
        for image_id, mine in places.items():
            found = self._read_photo(image_id, mine, listed, photos, problems)
            if found is not None and found[1]:
                name, masks = found
                self._places.append(list(masks))
                self.photos.append(
                    PhotoMasks(
                        name=name,
                        masks=list(masks.values()),
                        truth=true_objects.get(image_id, []),
                    )
                )
        raise_all([problems], done="refined")

    def store(self, index: int, refined: Sequence[RefinedMask]) -> None:
        """Take the refined masks of a photo."""
        for place, mask in zip(self._places[index], refined, strict=False):
            if mask.kept or mask.change == 0:
                continue
            entry = self.entries[place]
            entry["segmentation"] = to_segmentation(mask.rle)
            if self._are_annotations:
                entry["area"] = int(mask_api.area(mask.rle))
                entry["bbox"] = mask_api.toBbox(mask.rle).tolist()

    def write(self, model_uri: str) -> None:
        """Write the file, atomically and with its checksum."""
        content = self._content
        if isinstance(content, dict):
            content["refined_by"] = model_uri
        data = json.dumps(content, separators=(",", ":")).encode()
        checksums.write_file(self._out_uri, data)

    def _group_by_image(self, problems: Problems) -> dict[int, list[int]]:
        """Return the places of the entries to refine, by image id."""
        places: dict[int, list[int]] = {}
        for place, entry in enumerate(self.entries):
            where = f"entry {place}"
            if not isinstance(entry, dict):
                problems.add("not an object", f"{where}: {show_value(entry)}")
            elif missing := [k for k in ("image_id", "segmentation") if k not in entry]:
                problems.add("missing key", f"{where}: no {', no '.join(missing)}")
            elif not is_id(entry["image_id"]):
                value = show_value(entry["image_id"])
                problems.add("id is not an integer", f"{where}: image_id {value}")
            elif self._are_annotations and is_crowd(entry):
                self.counts["crowds"] += 1
            else:
                places.setdefault(entry["image_id"], []).append(place)
        return places

    def _read_photo(
        self,
        image_id: int,
        places: Sequence[int],
        listed: Mapping[int, Entry],
        photos: PhotoFinder,
        problems: Problems,
    ) -> tuple[str, dict[int, ObjectMask]] | None:
        """Find the photo of an image, and read its masks by their place; None with a problem."""
        if listed and image_id not in listed:
            problems.add("unknown image_id", f"entry {places[0]}: image_id {image_id}")
            return None
        image = listed.get(image_id, self.entries[places[0]])
        name = photos.find(image_id, image.get("file_name"), problems)
        size_hw = photos.read_size_hw(name, problems) if name else None
        if size_hw is None:
            return None
        stated = (image.get("height", size_hw[0]), image.get("width", size_hw[1]))
        if image_id in listed and stated != size_hw:
            problems.add("wrong photo size", f"{name} has {list(size_hw)}, the file {list(stated)}")
            return None
        return name, self._read_masks(places, size_hw, problems)

    def _read_masks(
        self, places: Sequence[int], size_hw: tuple[int, int], problems: Problems
    ) -> dict[int, ObjectMask]:
        masks: dict[int, ObjectMask] = {}
        for place in places:
            entry = self.entries[place]
            try:
                rle, area_px = to_rle(entry["segmentation"], size_hw=size_hw)
            except SegmentationError as error:
                where = f"entry {place}, image {entry['image_id']}"
                problems.add(error.kind, f"{where}: {error.value}")
                continue
            if area_px == 0:
                self.counts["empty"] += 1
                continue
            masks[place] = ObjectMask(
                rle=rle,
                category_id=entry.get("category_id"),
                annotation_id=entry.get("annotation_id"),
            )
        return masks


def _find_entries(content: Any, problems: Problems, *, are_annotations: bool) -> list[Any]:  # noqa: ANN401
    """Return the list of entries within the content of a file."""
    if are_annotations:
        lists = ("images", "annotations")
        if isinstance(content, dict) and all(isinstance(content.get(k), list) for k in lists):
            return list(content["annotations"])
        problems.add("not an annotation file", f"it is a {type(content).__name__}")
        return []
    rows = content.get("detections") if isinstance(content, dict) else content
    if isinstance(rows, list):
        return rows
    keys = f" with keys {sorted(content)}" if isinstance(content, dict) else ""
    problems.add("not a list", f"it is a {type(content).__name__}{keys:.60}")
    return []


def _group_truth(truth: Mapping[str, Any]) -> dict[int, list[ObjectMask]]:
    """Read the objects of a checked annotation file, by image id; crowds are left out."""
    sizes = {each["id"]: (each["height"], each["width"]) for each in truth["images"]}
    objects: dict[int, list[ObjectMask]] = {}
    for each in truth["annotations"]:
        if not is_crowd(each):
            rle, _ = to_rle(each["segmentation"], size_hw=sizes[each["image_id"]])
            objects.setdefault(each["image_id"], []).append(
                ObjectMask(rle=rle, category_id=each["category_id"], annotation_id=each["id"])
            )
    return objects


def _has_id(entry: object) -> bool:
    return isinstance(entry, dict) and is_id(entry.get("id"))
