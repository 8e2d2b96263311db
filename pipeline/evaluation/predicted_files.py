"""Read detections.json of `bsm predict` as a results file.

Prediction numbers the photos of a folder from 0 and does not know the truth, whose images have ids
of their own. The names of the files tell which image is which.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pipeline.errors import DatasetError
from pipeline.text import format_count

_EXAMPLES = 5


class PredictedRows(NamedTuple):
    """The rows of a results file, and remarks to show with the metrics."""

    rows: object
    notices: tuple[str, ...]


def read_predicted(content: object, truth: object, *, name: str) -> PredictedRows:
    """Convert the content of detections.json; return any other content as it is.

    Args:
        content: of a file with detections.
        truth: content of a COCO annotation file.
        name: of the file in error messages.

    Raises:
        DatasetError: a predicted photo is not one of the truth's.
    """
    if not isinstance(content, Mapping) or not isinstance(truth, Mapping):
        return PredictedRows(content, ())
    if not all(isinstance(content.get(key), list) for key in ("images", "detections")):
        return PredictedRows(content, ())
    ids = _match_images(content["images"], truth.get("images", ()), name=name)
    # Detections of a photo are known by its number in this file.
    rows = [{**row, "image_id": ids[row["image_id"]]} for row in content["detections"]]
    score = content.get("score_threshold", 0)
    notices: tuple[str, ...] = ()
    if score:
        notices = (
            f"{name} has detections with a score of {score:g} or more only, which makes AP lower; "
            "predict again with --score 0 for the AP of all",
        )
    return PredictedRows(rows, notices)


def _match_images(
    predicted: list[dict[str, Any]], images: list[dict[str, Any]], *, name: str
) -> dict[int, int]:
    """Match predicted photos with the truth's images, by file name or by its last part."""
    by_name: dict[str, list[int]] = defaultdict(list)
    by_last: dict[str, list[int]] = defaultdict(list)
    for image in images:
        if isinstance(image, dict) and {"id", "file_name"} <= image.keys():
            file = str(image["file_name"])
            by_name[file].append(image["id"])
            by_last[PurePosixPath(file).name].append(image["id"])
    ids: dict[int, int] = {}
    unknown = []
    for photo in predicted:
        file = str(photo["file_name"])
        found = by_name.get(file) or by_last.get(PurePosixPath(file).name, [])
        if len(found) == 1:
            ids[photo["id"]] = found[0]
        else:
            unknown.append(f"{file}: {len(found) or 'no'} images of the truth")
    if unknown:
        shown = "\n  ".join(unknown[:_EXAMPLES])
        raise DatasetError(
            f"{name}: {format_count(len(unknown), 'photo')} of {len(predicted)} cannot be matched "
            f"with the truth by file name:\n  {shown}\nPredict the photos that the truth lists, "
            "under their names"
        )
    return ids
