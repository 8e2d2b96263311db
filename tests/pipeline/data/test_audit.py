import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.audit import audit, audit_shards
from pipeline.data.ingest import ingest_coco, ingest_lvis, ingest_semantic
from pipeline.data.ingest_config import CocoIngest, LvisIngest, SemanticIngest
from pipeline.data.manifest import read_manifest, write_manifest
from pipeline.data.semantic_fields import encode_plane
from pipeline.data.shards import FOOTER_KEY
from pipeline.errors import DatasetError
from tests.pipeline.data.coco_samples import SPLIT, small_coco
from tests.pipeline.data.lvis_samples import lvis
from tests.pipeline.data.street_samples import label_maps


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    small_coco(root, images=70)
    out = root / "out"
    ingest_coco(CocoIngest(root=str(root), split=SPLIT, out=str(out), workers=0, rows_per_shard=32))
    return out


@pytest.fixture
def shards(made, tmp_path):
    return shutil.copytree(made, tmp_path / "shards")


def _rewrite(place, change):
    """Write a shard again with one column changed, as another program would; the footer stays."""
    table = pq.read_table(place)
    changed = change(table.to_pydict())
    footer = pq.read_metadata(place).metadata[FOOTER_KEY]
    again = pa.Table.from_pydict(changed, schema=table.schema)
    pq.write_table(again.replace_schema_metadata({FOOTER_KEY: footer}), place, row_group_size=32)


def _resized(shards):
    """Let dataset.json name the sizes of the files as they are."""
    manifest = read_manifest(str(shards))
    infos = [
        replace(each, size_bytes=(shards / each.file).stat().st_size) for each in manifest.shards
    ]
    write_manifest(str(shards), replace(manifest, shards=tuple(infos)))


def test_sound_shards_pass_quickly_and_deeply(shards):
    assert audit_shards(str(shards)) == []
    result = audit(str(shards), deep=True)
    assert (result["images"], result["problems"]) == (70, 0)


def test_every_shard_that_is_missing_or_cut_off_is_named(shards):
    (shards / "part-00000.parquet").unlink()
    place = shards / "part-00001.parquet"
    place.write_bytes(place.read_bytes()[:-100])
    first, second = audit_shards(str(shards))
    assert first == "part-00000.parquet is missing"
    assert second.startswith("part-00001.parquet has ")
    with pytest.raises(DatasetError, match=r"(?s)2 problems.*run the same ingest command again"):
        audit(str(shards))


def test_a_file_of_the_right_size_that_is_no_shard_is_found(shards):
    place = shards / "part-00001.parquet"
    place.write_bytes(bytes(place.stat().st_size))
    assert audit_shards(str(shards)) == [
        "part-00001.parquet is no shard: its footer cannot be read"
    ]


def test_a_shard_of_another_run_is_found(shards, tmp_path):
    other = small_coco(tmp_path / "other", images=70, seed=1)
    out = tmp_path / "other_out"
    ingest_coco(
        CocoIngest(root=str(other), split=SPLIT, out=str(out), workers=0, rows_per_shard=32)
    )
    shutil.copy(out / "part-00001.parquet", shards)
    _resized(shards)
    assert audit_shards(str(shards)) == [
        "part-00001.parquet: it holds other rows than dataset.json says"
    ]


def test_other_row_groups_than_declared_are_found(shards):
    place = shards / "part-00000.parquet"
    table = pq.read_table(place)
    footer = pq.read_metadata(place).metadata[FOOTER_KEY]
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: footer}), place, row_group_size=8)
    _resized(shards)
    (problem,) = audit_shards(str(shards))
    assert "row groups 8, 8, 8, 8" in problem


def test_a_category_that_is_not_declared_is_found(shards):
    def change(columns):
        columns["category_index"] = [[9] * len(each) for each in columns["category_index"]]
        return columns

    _rewrite(shards / "part-00002.parquet", change)
    _resized(shards)
    assert audit_shards(str(shards)) == [
        "part-00002.parquet: category_index 9, there are 2 categories"
    ]


def test_a_flipped_bit_is_found_by_the_deep_audit(shards):
    place = shards / "part-00001.parquet"
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)
    assert audit_shards(str(shards)) == []
    with pytest.raises(DatasetError, match=r"part-00001\.parquet"):
        audit(str(shards), deep=True)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("image", b"\xff\xd8 no image", "image_format"),
        ("squeeze_field", None, "its field is not that of its mask"),
        ("rle", None, "run lengths"),
    ],
)
def test_rows_that_were_changed_are_found_by_the_deep_audit(shards, column, value, told):
    def change(columns):
        row = next(n for n, each in enumerate(columns["annotation_id"]) if each)
        if value is not None:
            columns[column][row] = value
        elif column == "rle":
            columns[column][row][0] = b"1"
        else:
            columns[column][row][0] = bytes(112 * 112)
        return columns

    _rewrite(shards / "part-00000.parquet", change)
    _resized(shards)
    assert audit_shards(str(shards)) == []
    with pytest.raises(DatasetError, match=told):
        audit(str(shards), deep=True)


@pytest.fixture(scope="module")
def made_maps(tmp_path_factory):
    root = label_maps(tmp_path_factory.mktemp("maps"), images=3)
    ingest_semantic(SemanticIngest(root=str(root), split="train", out=f"{root}/out", workers=0))
    return root / "out"


@pytest.fixture
def maps(made_maps, tmp_path):
    return shutil.copytree(made_maps, tmp_path / "maps")


def _plane(values):
    return encode_plane(np.full((48, 96), values, np.uint8))


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("image", b"\xff\xd8 no image", "image_format"),
        ("label", b"no plane", "label cannot be read"),
        ("label", encode_plane(np.zeros((9, 9), np.uint8)), "label has another size"),
        ("label", _plane(3), "no category_index below 3"),
        ("label", _plane(1), "other_1 is not that of its label"),
        ("other_1", _plane(255), "other_1 is not that of its label"),
        ("distance_2", _plane(7), "distance_2 is not that of its label"),
        ("class_px", [1], "not those of its label"),
        ("category_index", [2], "not those of its label"),
    ],
)
def test_changed_label_maps_are_found_by_the_deep_audit(maps, column, value, told):
    def change(columns):
        columns[column][1] = value
        return columns

    assert audit(str(maps), deep=True)["images"] == 3
    _rewrite(maps / "part-00000.parquet", change)
    _resized(maps)
    assert audit_shards(str(maps)) == []
    with pytest.raises(DatasetError, match=told):
        audit(str(maps), deep=True)


def test_a_shard_of_another_task_and_a_class_that_is_not_declared_are_found(maps, shards):
    def change(columns):
        columns["category_index"][0] = [5]
        return columns

    _rewrite(maps / "part-00000.parquet", change)
    _resized(maps)
    (problem,) = audit_shards(str(maps))
    assert problem == "part-00000.parquet: category_index 5, there are 3 categories"
    shutil.copy(shards / "part-00000.parquet", maps)
    _resized(maps)
    (problem,) = audit_shards(str(maps))
    assert problem == "part-00000.parquet has other columns than a shard of this version"


def test_lists_of_what_was_looked_for_are_audited(tmp_path):
    root = lvis(tmp_path / "lvis")
    out = root / "out"
    ingest_lvis(LvisIngest(root=str(root), split="val", out=str(out), workers=0))

    def change(columns):
        columns["neg_category_index"][0] = [5]
        return columns

    _rewrite(out / "part-00000.parquet", change)
    _resized(out)
    with pytest.raises(DatasetError, match=r"neg_category_index has a category_index that is not"):
        audit(str(out), deep=True)


def test_an_unfinished_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="ingest has not finished"):
        audit_shards(str(tmp_path))
