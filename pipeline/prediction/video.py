"""Predict the frames of a video, and write a video with the masks drawn on it."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.data.label_png import read_values
from pipeline.data.photo import Pixels
from pipeline.errors import DatasetError, RecipeError
from pipeline.prediction.files import to_coco, write_json
from pipeline.prediction.folder import check_options, describe_model, make_predict
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.photo_model import LoadedModel, Rows
from pipeline.progress import log_progress
from pipeline.report.draw import draw_instances, list_instances
from pipeline.report.label_picture import assign_colors, draw_label_map
from pipeline.serving.artifacts import SCORE_THRESHOLD

VIDEO_ENDINGS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"})

_CODEC = "mp4v"
"""Comes with every build of OpenCV."""

_log = logging.getLogger(__name__)


def is_video(path: str) -> bool:
    """Tell whether a path is that of a video, by its ending."""
    return Path(path).suffix.lower() in VIDEO_ENDINGS and Path(path).is_file()


def predict_video(
    loaded: LoadedModel,
    images: Sequence[str],
    out: str | Path,
    *,
    score: float | None = None,
    refiner: object = None,
    options: PredictOptions,
) -> dict[str, Any]:
    """Predict every frame of a video.

    Writes out/NAME.mp4, without sound, and for an instance model out/detections.json, whose images
    are the frames: `frame` counts from 0, and file_name is NAME:FRAME.

    Args:
        loaded: the model.
        images: one file that OpenCV reads.
        out: local output folder; created if missing.
        score: score threshold of an instance model, 0.5 by default.
        refiner: must be None; frames are not refined.
        options: how to predict, and what to write.

    Raises:
        RecipeError: an option does not fit the model or videos.
        DatasetError: the video cannot be read or written.
    """
    started = time.perf_counter()
    if len(images) != 1 or refiner is not None:
        raise RecipeError(
            f"--images {' '.join(images)}: a video is predicted alone and without --refine"
        )
    check_options(loaded, score=score, refiner=None, options=options)
    is_semantic = loaded.model.task == "semantic"
    formats = options.choose_formats(is_semantic=is_semantic, is_video=True)
    threshold = SCORE_THRESHOLD if score is None else score
    predict = make_predict(loaded, options, score=threshold)
    video, folder = Path(images[0]), Path(out)
    target = folder / f"{video.stem}.mp4"
    if target.resolve() == video.resolve():
        raise DatasetError(f"--out {out} is the folder of the video, which would be overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    draw = _make_draw(loaded)
    frames: list[dict[str, Any]] = []
    rows: Rows = []
    with _Reader(str(video)) as reader, _Writer(target, reader.frames_per_second) as writer:
        for pixels in reader.read():
            found = predict(pixels)
            frames.append(_describe_frame(video.name, len(frames), pixels))
            if not is_semantic:
                entry = (frames[-1]["id"], frames[-1]["file_name"], loaded.model.categories)
                rows += [to_coco(row, *entry) for row in found]
            if "overlay" in formats:
                writer.write(draw(pixels, found))
    result: dict[str, Any] = {"images": len(frames), "left_out": 0, "detections": len(rows)}
    if "overlay" in formats:
        result["video"] = str(target)
    if "coco" in formats:
        file = folder / "detections.json"
        content = {"score_threshold": threshold, "images": frames, "left_out": []}
        write_json(file, {**describe_model(loaded), **content, "detections": rows})
        result["detections_file"] = str(file)
    seconds = round(time.perf_counter() - started, 3)
    return {**result, "seconds": seconds, "out": str(folder), "model": loaded.uri}


def _describe_frame(video: str, frame: int, pixels: Pixels) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    size = {"height": height, "width": width}
    return {"id": frame, "file_name": f"{video}:{frame:06d}", "frame": frame, **size}


def _make_draw(loaded: LoadedModel) -> Callable[[Pixels, Rows], Pixels]:
    """Make the function that draws a prediction on a frame, at the frame's size."""
    if loaded.model.task != "semantic":
        return lambda pixels, rows: np.asarray(
            draw_instances(pixels, list_instances(rows), min_side_px=1)
        )
    legend = assign_colors({each.category_id: each.name for each in loaded.model.categories})

    def draw(pixels: Pixels, rows: Rows) -> Pixels:
        labels = read_values(rows[0]["label_map"], bits=8, max_pixels=None)
        picture = draw_label_map(pixels, labels, legend, min_side_px=1)
        # Without the legend below, whose height differs from frame to frame.
        return np.asarray(picture)[: pixels.shape[0]]

    return draw


class _Reader:
    """Decodes the frames of a video."""

    def __init__(self, video: str) -> None:
        self._capture = cv2.VideoCapture(video)
        self._video = video
        self.frames_per_second = self._capture.get(cv2.CAP_PROP_FPS) or 25.0

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def read(self) -> Iterator[Pixels]:
        """Yield frames (H, W, 3) RGB.

        Raises:
            DatasetError: there is no frame that can be read.
        """
        total = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        read = 0
        for _ in log_progress(range(total), "predict", total=total):
            ok, frame = self._capture.read()
            if not ok:
                break
            read += 1
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)
        if not read:
            raise DatasetError(
                f"{self._video}: OpenCV reads no frame of it; convert it, for instance with: "
                f"ffmpeg -i {self._video} converted.mp4"
            )
        if read < total:
            _log.warning("predict: %s ends after %d of %d frames", self._video, read, total)


class _Writer:
    """Writes frames to a video, which is opened with the size of the first."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self._path, self._fps = path, frames_per_second
        self._writer: Any = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, frame: Pixels) -> None:
        """Write a frame (H, W, 3) RGB.

        Raises:
            DatasetError: OpenCV cannot write the file.
        """
        if self._writer is None:
            codec = cv2.VideoWriter.fourcc(*_CODEC)
            size_wh = (frame.shape[1], frame.shape[0])
            self._writer = cv2.VideoWriter(str(self._path), codec, self._fps, size_wh)
            if not self._writer.isOpened():
                raise DatasetError(f"{self._path}: OpenCV cannot write a video there")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
