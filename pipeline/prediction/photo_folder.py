"""List the photos of a folder, and count everything else that is in it."""

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.data.photo import FORMAT_NAMES, PHOTO_ENDINGS, find_format
from pipeline.errors import DatasetError
from pipeline.text import format_counts

_log = logging.getLogger(__name__)

_HEADER_BYTES = 16
_EXAMPLES = 3


class PhotoFolder(NamedTuple):
    """The photos of a folder."""

    root: Path
    names: list[str]
    """Paths under root, with slashes."""
    others: dict[str, str]
    """Ending of each file that is no photo, and why a folder is not read."""


def list_photos(images: Sequence[str], out: Path) -> PhotoFolder:
    """List photos, and those under folders, also in linked folders.

    A file is a photo by its ending or its first bytes. Everything else is counted in the log.

    Args:
        images: folders, files or patterns such as photos/*.jpg.
        out: folder of results, which are not photos to read.

    Raises:
        DatasetError: there is no photo, or out would overwrite them.
    """
    paths = [path for each in images for path in _expand(each)]
    missing = [str(path) for path in paths if not path.exists()]
    if not paths or (missing and len(paths) > 1):
        raise DatasetError(
            f"--images: {', '.join(missing) or 'nothing is named'}; name folders, photos or "
            "patterns that exist"
        )
    folder = _list_path(paths[0], out) if len(paths) == 1 else _list_paths(paths, out)
    shown = " ".join(images)
    if not folder.names:
        state = (
            f"has no {FORMAT_NAMES} file{_count(folder.others)}"
            if any(path.is_dir() for path in paths)
            else "is no folder and no photo, and as a pattern it matches no file"
            if missing
            else f"is not a folder with a {FORMAT_NAMES} file"
        )
        raise DatasetError(f"--images {shown} {state}")
    if out.resolve() == folder.root.resolve():
        raise DatasetError(
            f"--out {out} is the folder of the photos, which would be overwritten; use another"
        )
    if folder.others:
        _log.warning("predict: not read%s", _count(folder.others))
    return folder


def _expand(images: str) -> list[Path]:
    """Expand a pattern; a name that exists is no pattern."""
    path = Path(images)
    if path.exists() or not glob.has_magic(images):
        return [path]
    found = [Path(each) for each in sorted(glob.glob(images, recursive=True))]  # noqa: PTH207
    return found or [path]


def _list_path(path: Path, out: Path) -> PhotoFolder:
    if path.is_file():
        return PhotoFolder(path.parent, [path.name], {})
    return _walk(path, out.resolve())


def _list_paths(paths: Sequence[Path], out: Path) -> PhotoFolder:
    """List several paths under the folder that they share."""
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names: dict[str, None] = {}
    others: dict[str, str] = {}
    for path in paths:
        found = _list_path(path, out)
        start = path.absolute().parent if path.is_file() else path.absolute()
        prefix = start.relative_to(root)
        for name in found.names:
            # A pattern such as photos/* also finds what is no photo.
            if path.is_file() and not _is_photo(path):
                others[(prefix / name).as_posix()] = path.suffix.lower() or "no ending"
            else:
                names[(prefix / name).as_posix()] = None
        others |= {(prefix / name).as_posix(): why for name, why in found.others.items()}
    return PhotoFolder(root, list(names), others)


def _walk(root: Path, out: Path) -> PhotoFolder:
    names: list[str] = []
    others: dict[str, str] = {}
    seen: set[Path] = set()
    ignored = {out} - {root.resolve()}

    def add_unreadable(error: OSError) -> None:
        others[f"{Path(error.filename).relative_to(root)}/"] = error.strerror or "unreadable folder"

    for parent, folders, files in os.walk(root, followlinks=True, onerror=add_unreadable):
        path = Path(parent)
        real = path.resolve()
        if real in ignored or real in seen:
            folders.clear()
            if real in seen:
                others[f"{path.relative_to(root)}/"] = "link to a folder that is read already"
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(files):
            file = path / name
            relative = file.relative_to(root).as_posix()
            if _is_photo(file):
                names.append(relative)
            else:
                others[relative] = file.suffix.lower() or "no ending"
    return PhotoFolder(root, sorted(names, key=lambda name: Path(name).parts), others)


def _is_photo(path: Path) -> bool:
    if path.suffix.lower() in PHOTO_ENDINGS:
        return True
    try:
        # A pipe would wait for its other end.
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return bool(find_format(stream.read(_HEADER_BYTES)))
    except OSError:
        return False


def _count(others: dict[str, str]) -> str:
    if not others:
        return ""
    examples = ", ".join(list(others)[:_EXAMPLES])
    return f": {format_counts(others.values())} (such as {examples})"
