"""Read the true masks of photos from a COCO annotation file."""

from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import DatasetError
from pipeline.evaluation.coco_files import read_json
from pipeline.evaluation.rle import SegmentationError, to_rle
from pipeline.model_view.photos import NamedPhoto
from pipeline.report.draw import Instance, decode_instance


class Truth:
    """The objects of photos, by file name.

    Args:
        uri: annotation file in the COCO format.

    Raises:
        DatasetError: it is not such a file.
        StorageError: it cannot be read.
    """

    def __init__(self, uri: str) -> None:
        content = read_json(uri)
        try:
            self._load(content)
        except (KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"--truth {uri}: not a COCO annotation file with images, annotations and "
                f"categories ({type(error).__name__}: {error})"
            ) from error
        self._uri = uri

    def find(self, photo: NamedPhoto) -> list[Instance] | None:
        """Return the objects of a photo, without crowds; None if the file does not list it.

        Raises:
            DatasetError: a mask does not fit the photo.
        """
        image_id = self._image_ids.get(photo.name)
        if image_id is None:
            return None
        height, width = photo.pixels.shape[:2]
        try:
            return [
                decode_instance(
                    dict(to_rle(each["segmentation"], size_hw=(height, width)).rle),
                    category_index=self._order[each["category_id"]],
                    name=self._names[each["category_id"]],
                )
                for each in self._annotations[image_id]
                if not each.get("iscrowd")
            ]
        except (SegmentationError, KeyError) as error:
            raise DatasetError(
                f"--truth {self._uri}: image {image_id} ({photo.name}): {error}. Check the file: "
                "bsm ingest coco"
            ) from error

    def _load(self, content: Any) -> None:  # noqa: ANN401
        # Folders differ between the file and the command line.
        self._image_ids = {
            PurePosixPath(each["file_name"]).name: each["id"] for each in content["images"]
        }
        self._names = {each["id"]: each["name"] for each in content["categories"]}
        # The order that ingest gives them, so the truth has the colors of the predictions.
        self._order = {each: index for index, each in enumerate(sorted(self._names))}
        self._annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for each in content["annotations"]:
            self._annotations[each["image_id"]].append(each)
