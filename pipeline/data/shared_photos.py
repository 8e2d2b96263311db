"""Find photos that two splits share: a model that has seen them in training is scored too well."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.data.manifest import ShardInfo, read_manifest
from pipeline.data.read_rows import read_columns, read_rows

_READ_THREADS = 16
_COMPARED = 20
"""Photos of equal names that are compared byte for byte; other data sets may count alike."""

_Places = dict[str, tuple[str, int, int]]
"""Shard, row group and row in it, by file name."""


def find_shared_photos(large: str, small: str) -> list[str]:
    """List photos with equal names and bytes in two folders of shards.

    Only the first of those with equal names are compared.

    Args:
        large: folder or URI, of which only the names are held that the other has too.
        small: the other.
    """
    ours = _find_places(small)
    others = _find_places(large, among=pa.array(ours, pa.string()))
    common = sorted(others)[:_COMPARED]
    return [name for name in common if _read_photo(ours[name]) == _read_photo(others[name])]


def _find_places(uri: str, *, among: pa.Array | None = None) -> _Places:
    def find(shard: ShardInfo) -> _Places:
        path = storage.join(uri, shard.file)
        names = read_columns(path, ["file_name"])["file_name"]
        rows = np.arange(len(names)) if among is None else np.flatnonzero(pc.is_in(names, among))
        starts = np.cumsum((0, *shard.row_groups))
        groups = np.searchsorted(starts, rows, side="right") - 1
        return {
            names[row].as_py(): (path, int(group), int(row - starts[group]))
            for row, group in zip(rows.tolist(), groups, strict=True)
        }

    places: _Places = {}
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for found in pool.map(find, read_manifest(uri).shards):
            places |= found
    return places


def _read_photo(place: tuple[str, int, int]) -> bytes:
    path, group, row = place
    photo: bytes = read_rows(path, group, np.array([row]), columns=["image"])["image"][0].as_py()
    return photo
