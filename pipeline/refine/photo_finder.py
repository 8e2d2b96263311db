"""Find the photo of an image in a folder, and read its size from its header."""

from collections import defaultdict
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.photo import PHOTO_ENDINGS, PhotoError, read_size_hw
from pipeline.errors import DatasetError, StorageError
from pipeline.evaluation.problems import Problems, show_value

_HEADER_BYTES = 2**16


class PhotoFinder:
    """The photos under a folder, by path, by path without ending, and by image id."""

    def __init__(self, images: str) -> None:
        """List the folder.

        Raises:
            DatasetError: it has no photos.
            StorageError: it cannot be listed.
        """
        self.root = storage.absolute(images)
        top = f"{self.root.rstrip('/')}/"
        listed = (uri.removeprefix(top) for uri in storage.list_files(self.root, recursive=True))
        self._names = {name for name in listed if name.lower().endswith(PHOTO_ENDINGS)}
        if not self._names:
            raise DatasetError(f"--images {images} is not a folder with photos")
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._by_id: dict[int, list[str]] = defaultdict(list)
        for name in sorted(self._names):
            path = PurePosixPath(name)
            self._by_stem[str(path.with_suffix(""))].append(name)
            # 000000000139.jpg, or COCO_val2014_000000000139.jpg.
            number = path.stem.rpartition("_")[2]
            if number.isascii() and number.isdigit():
                self._by_id[int(number)].append(name)

    def find(self, image_id: int, file_name: object, problems: Problems) -> str:
        """Return the photo of an image, by its file name or else by its id; "" with a problem."""
        where = f"image {image_id}"
        if file_name is None:
            return self._choose(self._by_id[image_id], where, problems)
        if not isinstance(file_name, str) or file_name not in self._names:
            problems.add("missing photo", f"{where}: {show_value(file_name)}")
            return ""
        return str(file_name)

    def find_by_stem(self, stem: str, problems: Problems) -> str:
        """Return the photo with the path of another file, without ending; "" with a problem."""
        return self._choose(self._by_stem[stem], stem, problems)

    def read_size_hw(self, name: str, problems: Problems) -> tuple[int, int] | None:
        """Read the size of a photo from its header; None with a problem."""
        uri = storage.join(self.root, name)
        try:
            with storage.open_file(uri) as stream:
                start = bytes(stream.read(_HEADER_BYTES))
                try:
                    return read_size_hw(start)
                except PhotoError:  # the header may be longer
                    return read_size_hw(start + bytes(stream.read()))
        except (PhotoError, StorageError, OSError) as error:
            problems.add("unreadable photo", f"{name}: {error}")
            return None

    def _choose(self, names: list[str], where: str, problems: Problems) -> str:
        if len(names) == 1:
            return names[0]
        if names:
            problems.add("several photos for one image", f"{where}: {', '.join(names)[:100]}")
        else:
            problems.add("missing photo", where)
        return ""
