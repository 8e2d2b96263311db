"""Detections in the official submission format of Cityscapes, for its own instance AP.

For each frame a txt with lines of `mask path, label id, score`, and a PNG for each mask, as
cityscapes_files.py and cityscapesScripts read them:

    python jobs/evaluate.py --metric cityscapes-instance --truth gtFine/val --detections FOLDER
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from pipeline import storage
from pipeline.data.semantic_fields import encode_plane
from pipeline.errors import DatasetError
from pipeline.evaluation.folders import frame_of

_THREADS = 8

_MASKS = "masks"


def write_submission(
    uri: str, rows: Sequence[Mapping[str, Any]], file_names: Mapping[int, str]
) -> None:
    """Write what was found in frames of Cityscapes; what was in the folder before is deleted.

    Args:
        uri: the folder.
        rows: of a COCO results file, whose category ids are label ids, with masks.
        file_names: of the photos by image id; a frame in which nothing was found has its txt too.

    Raises:
        DatasetError: a photo's name tells no frame, or two tell the same.
        StorageError: the place cannot be written.
    """
    frames = _frames(file_names)
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_image[row["image_id"]].append(row)
    storage.remove(uri)

    with ThreadPoolExecutor(_THREADS) as pool:
        done = [
            pool.submit(_write_frame, uri, name, by_image[image_id])
            for image_id, name in frames.items()
        ]
    for each in done:
        each.result()


def _frames(file_names: Mapping[int, str]) -> dict[int, str]:
    frames = {image_id: frame_of(name) for image_id, name in file_names.items()}
    told = Counter(frames.values())
    bad = [file_names[i] for i, frame in frames.items() if frame is None or told[frame] > 1]
    if bad:
        raise DatasetError(
            f"{len(bad)} photos have no frame of Cityscapes of their own in their names, such as "
            f"{', '.join(bad[:3])}: a submission needs names that start with the frame's, "
            "CITY_123456_123456, each once. Evaluate without --evaluation.submission"
        )
    return {image_id: frame for image_id, frame in frames.items() if frame is not None}


def _write_frame(uri: str, frame: str, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = []
    for number, row in enumerate(rows):
        place = f"{_MASKS}/{frame}_{number:03d}.png"
        mask = np.ascontiguousarray(mask_api.decode(row["segmentation"]))
        storage.write_bytes_atomic(storage.join(uri, place), encode_plane(mask * np.uint8(255)))
        lines.append(f"{place} {row['category_id']} {row['score']!r}\n")
    storage.write_bytes_atomic(storage.join(uri, f"{frame}.txt"), "".join(lines).encode())
