"""Find files of an earlier prediction that a new one into the same folder did not replace.

Whoever reads the folder, such as `bsm refine --labels`, would take them for results of this run.
"""

import json
import logging
from pathlib import Path

from pipeline.text import format_count

_log = logging.getLogger(__name__)

_LISTS = ("detections.json", "label_maps.json")
_FOLDERS = ("label_png", "labels", "label_maps", "cutouts")
_ENDINGS = ("", ".jpg", ".png")
"""Of pictures: the photo's name, or another ending after it."""
_EXAMPLES = 3


class EarlierFiles:
    """The files of earlier predictions in a folder, as they are now."""

    def __init__(self, out: Path) -> None:
        """Take a folder, before a prediction is written to it."""
        self._out = out
        self._marks = {path: _mark(path) for path in _list_results(out)}

    def warn(self) -> int:
        """Log how many of the files the prediction left as they were, and return the number."""
        left = [path for path, mark in self._marks.items() if _mark(path) == mark]
        if left:
            names = [path.relative_to(self._out).as_posix() for path in left]
            _log.warning(
                "predict: %s has %s of an earlier run that this one did not write, such as %s; "
                "delete them, or choose another --out",
                *(self._out, format_count(len(left), "file"), ", ".join(names[:_EXAMPLES])),
            )
        return len(left)


def _list_results(out: Path) -> list[Path]:
    found = {path for folder in _FOLDERS for path in (out / folder).rglob("*")}
    for name in _LISTS:
        found.add(out / name)
        found |= {
            out / f"{photo}{ending}" for photo in _read_names(out / name) for ending in _ENDINGS
        }
    return sorted(path for path in found if path.is_file())


def _read_names(path: Path) -> list[str]:
    """Read the names of photos in the list of an earlier run; a broken one names none."""
    try:
        images = json.loads(path.read_bytes())["images"]
        return [str(each["file_name"]) for each in images]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _mark(path: Path) -> tuple[int, int, int]:
    """Identify the state of a file: it is replaced, never changed in place."""
    try:
        state = path.stat()
    except OSError:
        return (0, 0, 0)
    return state.st_ino, state.st_mtime_ns, state.st_size
