"""Write detections in the official submission format of Cityscapes, for its own instance AP.

One txt per frame with lines of `mask path, label id, score`, and one PNG per mask, as read by
cityscapes_files.py and cityscapesScripts:

    python jobs/evaluate.py --metric cityscapes-instance --truth gtFine/val --detections FOLDER
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from pipeline import checksums, storage
from pipeline.data.semantic_fields import encode_plane
from pipeline.errors import DatasetError
from pipeline.evaluation.folders import parse_frame

_THREADS = 8

_MASKS = "masks"


def write_submission(
    uri: str, rows: Sequence[Mapping[str, Any]], file_names: Mapping[int, str]
) -> None:
    """Write the detections of Cityscapes frames; delete the previous content of the folder.

    Args:
        uri: the folder.
        rows: of a COCO results file, whose category ids are label ids, with masks.
        file_names: of the images by image id; a frame without detections gets an empty txt.

    Raises:
        DatasetError: file names do not contain frames, or several the same one.
        StorageError: the folder cannot be written.
    """
    frames = _parse_frames(file_names)
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_image[row["image_id"]].append(row)
    storage.remove(uri)

    with ThreadPoolExecutor(_THREADS) as pool:
        done = [
            pool.submit(_write_frame, uri, name, by_image[image_id])
            for image_id, name in frames.items()
        ]
    checksums.write_sums(uri, dict(each.result() for each in done))


def _parse_frames(file_names: Mapping[int, str]) -> dict[int, str]:
    frames = {image_id: parse_frame(name) for image_id, name in file_names.items()}
    counts = Counter(frames.values())
    bad = [file_names[i] for i, frame in frames.items() if frame is None or counts[frame] > 1]
    if bad:
        raise DatasetError(
            f"{len(bad)} file names do not start with a Cityscapes frame of their own, such as "
            f"{', '.join(bad[:3])}. A submission needs names like CITY_123456_123456*, each frame "
            "once. Evaluate without --evaluation.submission"
        )
    return {image_id: frame for image_id, frame in frames.items() if frame is not None}


def _write_frame(uri: str, frame: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Write the files of a frame; return the name of its txt, and its SHA-256."""
    lines = []
    for number, row in enumerate(rows):
        path = f"{_MASKS}/{frame}_{number:03d}.png"
        mask = np.ascontiguousarray(mask_api.decode(row["segmentation"]))
        storage.write_bytes_atomic(storage.join(uri, path), encode_plane(mask * np.uint8(255)))
        lines.append(f"{path} {row['category_id']} {row['score']!r}\n")
    name, data = f"{frame}.txt", "".join(lines).encode()
    storage.write_bytes_atomic(storage.join(uri, name), data)
    return name, checksums.hash_bytes(data)
