"""Read the photos to predict, count those that cannot be read, and name the files of each."""

import io
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline import storage
from pipeline.data.photo import PhotoError, Pixels, decode_photo
from pipeline.data.problems import KINDS, ProblemCounts, format_problems
from pipeline.errors import DatasetError
from pipeline.prediction.photo_folder import PhotoFolder
from pipeline.progress import log_progress
from pipeline.serving.memory import describe_memory, list_memory_errors
from pipeline.text import format_count

_log = logging.getLogger(__name__)

_PNG = ".png"
_JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})

_MAX_JPEG_SIDE_PX = 65_500


class Photos:
    """Photos to predict, those that could not be read, and the output folder."""

    def __init__(self, listed: PhotoFolder, out: Path) -> None:
        self.names = listed.names
        self.out = out
        self.left_out: list[dict[str, str]] = []
        self._root = listed.root
        self._problems = ProblemCounts()
        self._stems = Counter(Path(name).with_suffix("") for name in listed.names)
        self._taken: set[Path] = set()

    def read(self) -> Iterator[tuple[dict[str, Any], Pixels]]:
        """Yield the image entry and the pixels of each photo that can be read.

        Raises:
            DatasetError: after the last photo, if none can be read.
        """
        names = log_progress(self.names, "predict", total=len(self.names))
        for image_id, name in enumerate(names):
            pixels = self._decode(name)
            if pixels is not None:
                height, width = pixels.shape[:2]
                yield {"id": image_id, "file_name": name, "height": height, "width": width}, pixels
        if self._problems.counts:
            found = format_problems(self._problems)
            if len(self.left_out) == len(self.names):
                raise DatasetError(
                    f"none of {format_count(len(self.names), 'photo')} can be read, nothing was "
                    f"predicted. Replace them\n\n{found}"
                )
            _log.warning(
                "predict: left out %d of %d photos\n\n%s",
                *(len(self.left_out), len(self.names), found),
            )

    @contextmanager
    def leave_out_if_too_large(self, name: str) -> Iterator[None]:
        """Leave a photo out if there is not enough memory for it."""
        try:
            yield
        except list_memory_errors() as error:
            self._leave_out(name, "image_too_large", describe_memory(error))

    def save(self, picture: Image.Image, name: str) -> None:
        """Save the picture of a photo under its name, with another ending if it needs one."""
        can_be_jpeg = max(picture.size) <= _MAX_JPEG_SIDE_PX
        ending = Path(name).suffix.lower()
        if ending != _PNG and not (ending in _JPEG and can_be_jpeg):
            ending = ".jpg" if can_be_jpeg else _PNG
            while (name := name + ending) in self.names:
                pass
        encoded = io.BytesIO()
        if ending == _PNG:
            picture.save(encoded, format="PNG")
        else:
            picture.save(encoded, format="JPEG", quality=92)
        storage.write_bytes_atomic(str(self.out / name), encoded.getvalue())

    def name_file(self, folder: str, name: str, ending: str) -> Path:
        """Name a file of a photo: a.jpg becomes FOLDER/a.png, or a.jpg.png if that is taken."""
        path = self.out / folder / Path(name).with_suffix(ending)
        if self._stems[Path(name).with_suffix("")] > 1:
            path = self.out / folder / f"{name}{ending}"
        while path in self._taken:
            path = path.with_name(f"{path.name}{ending}")
        self._taken.add(path)
        return path

    def _decode(self, name: str) -> Pixels | None:
        try:
            photo = decode_photo((self._root / name).read_bytes())
        except PhotoError as error:
            self._leave_out(name, error.kind, str(error))
            return None
        except OSError as error:
            self._leave_out(name, "image_unreadable", error.strerror or str(error))
            return None
        for kind, reason in photo.notices:
            self._problems.add(kind, f"{name}: {reason}")
        return photo.pixels

    def _leave_out(self, name: str, kind: str, reason: str) -> None:
        self.left_out.append({"file_name": name, "rule": KINDS[kind][1], "reason": reason})
        self._problems.add(kind, f"{name}: {reason}")
