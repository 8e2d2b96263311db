"""Read what a run has predicted, in the first images of its split, and their truth."""

import json
from typing import Any

from pipeline import checksums, storage
from pipeline.data.augment import decode_row
from pipeline.data.photo import Pixels
from pipeline.evaluation.bands import choose_ratio
from pipeline.evaluation.split_reader import EvalChunk, plan_chunks, read_chunk, truth_from_shards
from pipeline.run_report.run_folder import RunFolder
from pipeline.text import format_count

READ_IMAGES = 1000
"""Objects are compared in this many images, to write a report in a minute."""


class Predictions:
    """The predicted masks in the first images of a run's split, and their truth.

    Args:
        run: the run.
        file: results file in its folder.

    Raises:
        PipelineError: a file cannot be read.
        ValueError: the split's manifest could not be read, or the file is no JSON.
    """

    def __init__(self, run: RunFolder, *, file: str) -> None:
        if run.val is None:
            raise ValueError(run.gaps["val"])
        rows = json.loads(checksums.read_file(storage.join(run.uri, file)))
        evaluated = min(run.recipe.evaluation.max_images or run.val.images, run.val.images)
        self._split_uri = run.val_uri
        self._chunks = plan_chunks(
            run.val_uri, max_images=min(evaluated, READ_IMAGES), images_per_chunk=READ_IMAGES
        )
        image_ids = {image_id for chunk in self._chunks for image_id in chunk.image_ids}
        self.truth = truth_from_shards(run.val_uri, image_ids=image_ids)
        """In COCO's layout."""
        self.names = {each["id"]: each["name"] for each in self.truth["categories"]}
        """Category names by id, in the order of the truth."""
        self.rows: list[Any] = [
            row for row in rows if row["image_id"] in image_ids and row["category_id"] in self.names
        ]
        """Of the results file."""
        self.files = {each["id"]: each["file_name"] for each in self.truth["images"]}
        """File names by image id."""
        self.ratio = choose_ratio(run.recipe.evaluation, run.val)
        """Width of the boundary band, in image diagonals."""
        self.is_federated = run.val.federated
        count = format_count(len(image_ids), "image")
        self.scope = f"in {count}" if len(image_ids) == evaluated else f"in the first {count}"
        """Words for the images."""

    def read_photo(self, image_id: int) -> Pixels:
        """Read the photo (H, W, 3) of an image.

        Raises:
            DatasetError: it cannot be decoded.
        """
        (chunk,) = (each for each in self._chunks if image_id in each.image_ids)
        row = chunk.rows[chunk.image_ids.index(image_id)]
        one = EvalChunk(chunk.file, chunk.row_group, (row,), (image_id,))
        return decode_row(read_chunk(self._split_uri, one), 0)
