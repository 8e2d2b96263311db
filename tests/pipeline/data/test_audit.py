import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.audit import audit, audit_shards
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CocoIngest, LvisIngest, SemanticIngest
from pipeline.data.manifest import read_manifest, write_manifest
from pipeline.data.semantic_fields import encode_plane
from pipeline.data.shards import FOOTER_KEY
from pipeline.errors import DatasetError
from tests.pipeline.data.coco_samples import SPLIT, bomb_png, small_coco
from tests.pipeline.data.lvis_samples import lvis
from tests.pipeline.data.street_samples import label_maps


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    small_coco(root, images=70)
    out = root / "out"
    ingest_dataset(
        CocoIngest(root=str(root), split=SPLIT, out=str(out), workers=0, rows_per_shard=32)
    )
    return out


@pytest.fixture
def shards(ingested, tmp_path):
    return shutil.copytree(ingested, tmp_path / "shards")


def _rewrite(path, change):
    """Rewrite a shard with one column changed; keep its footer."""
    table = pq.read_table(path)
    changed = change(table.to_pydict())
    footer = pq.read_metadata(path).metadata[FOOTER_KEY]
    again = pa.Table.from_pydict(changed, schema=table.schema)
    pq.write_table(again.replace_schema_metadata({FOOTER_KEY: footer}), path, row_group_size=32)


def _update_sizes(shards):
    """Update the file sizes in dataset.json."""
    manifest = read_manifest(str(shards))
    infos = [
        replace(each, size_bytes=(shards / each.file).stat().st_size) for each in manifest.shards
    ]
    write_manifest(str(shards), replace(manifest, shards=tuple(infos)))


def test_intact_shards_pass_the_quick_and_the_deep_audit(shards):
    assert audit_shards(str(shards)) == []
    result = audit(str(shards), deep=True)
    assert (result["images"], result["problems"]) == (70, 0)


def test_reports_every_missing_or_truncated_shard(shards):
    (shards / "part-00000.parquet").unlink()
    path = shards / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    first, second = audit_shards(str(shards))
    assert first == "part-00000.parquet is missing"
    assert second.startswith("part-00001.parquet has ")
    with pytest.raises(DatasetError, match=r"(?s)2 problems.*run the same ingest command again"):
        audit(str(shards))


def test_reports_a_file_of_the_right_size_that_is_not_a_shard(shards):
    path = shards / "part-00001.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    assert audit_shards(str(shards)) == [
        "part-00001.parquet is not a shard: its footer cannot be read"
    ]


def test_reports_a_shard_of_another_run(shards, tmp_path):
    other = small_coco(tmp_path / "other", images=70, seed=1)
    out = tmp_path / "other_out"
    ingest_dataset(
        CocoIngest(root=str(other), split=SPLIT, out=str(out), workers=0, rows_per_shard=32)
    )
    shutil.copy(out / "part-00001.parquet", shards)
    _update_sizes(shards)
    assert audit_shards(str(shards)) == [
        "part-00001.parquet: its rows are not those of dataset.json"
    ]


def test_reports_undeclared_row_groups(shards):
    path = shards / "part-00000.parquet"
    table = pq.read_table(path)
    footer = pq.read_metadata(path).metadata[FOOTER_KEY]
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: footer}), path, row_group_size=8)
    _update_sizes(shards)
    (problem,) = audit_shards(str(shards))
    assert "row groups 8, 8, 8, 8" in problem


def test_reports_an_undeclared_category(shards):
    def change(columns):
        columns["category_index"] = [[9] * len(each) for each in columns["category_index"]]
        return columns

    _rewrite(shards / "part-00002.parquet", change)
    _update_sizes(shards)
    assert audit_shards(str(shards)) == [
        "part-00002.parquet: category_index 9, dataset.json has 2 categories"
    ]


def test_deep_audit_finds_a_flipped_bit(shards):
    path = shards / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert audit_shards(str(shards)) == []
    with pytest.raises(DatasetError, match=r"part-00001\.parquet"):
        audit(str(shards), deep=True)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", b"\xff\xd8 no image", "image_format"),
        ("image", bomb_png(96, 48), "image_unreadable"),
        ("squeeze_field", None, "its field does not match its mask"),
        ("rle", None, "run lengths"),
    ],
)
def test_deep_audit_finds_changed_rows(shards, column, value, message):
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
    _update_sizes(shards)
    assert audit_shards(str(shards)) == []
    with pytest.raises(DatasetError, match=message):
        audit(str(shards), deep=True)


@pytest.fixture(scope="module")
def ingested_maps(tmp_path_factory):
    root = label_maps(tmp_path_factory.mktemp("maps"), images=3)
    ingest_dataset(SemanticIngest(root=str(root), split="train", out=f"{root}/out", workers=0))
    return root / "out"


@pytest.fixture
def maps(ingested_maps, tmp_path):
    return shutil.copytree(ingested_maps, tmp_path / "maps")


def _plane(values):
    return encode_plane(np.full((48, 96), values, np.uint8))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image", b"\xff\xd8 no image", "image_format"),
        ("image", bomb_png(96, 48), "image_unreadable"),
        ("label", b"no plane", "label cannot be read"),
        ("label", encode_plane(np.zeros((9, 9), np.uint8)), "label has another size"),
        ("label", _plane(3), "label has values above category_index 2"),
        ("label", _plane(1), "other_1 does not match its label"),
        ("other_1", _plane(255), "other_1 does not match its label"),
        ("distance_2", _plane(7), "distance_2 does not match its label"),
        ("class_px", [1], "do not match its label"),
        ("category_index", [2], "do not match its label"),
    ],
)
def test_deep_audit_finds_changed_label_maps(maps, column, value, message):
    def change(columns):
        columns[column][1] = value
        return columns

    assert audit(str(maps), deep=True)["images"] == 3
    _rewrite(maps / "part-00000.parquet", change)
    _update_sizes(maps)
    assert audit_shards(str(maps)) == []
    with pytest.raises(DatasetError, match=message):
        audit(str(maps), deep=True)


def test_reports_a_shard_of_another_task_and_an_undeclared_class(maps, shards):
    def change(columns):
        columns["category_index"][0] = [5]
        return columns

    _rewrite(maps / "part-00000.parquet", change)
    _update_sizes(maps)
    (problem,) = audit_shards(str(maps))
    assert problem == "part-00000.parquet: category_index 5, dataset.json has 3 categories"
    shutil.copy(shards / "part-00000.parquet", maps)
    _update_sizes(maps)
    (problem,) = audit_shards(str(maps))
    assert problem == "part-00000.parquet does not have the columns of a shard of this version"


def test_deep_audit_checks_the_lists_of_categories(tmp_path):
    root = lvis(tmp_path / "lvis")
    out = root / "out"
    ingest_dataset(LvisIngest(root=str(root), split="val", out=str(out), workers=0))

    def change(columns):
        columns["neg_category_index"][0] = [5]
        return columns

    _rewrite(out / "part-00000.parquet", change)
    _update_sizes(out)
    with pytest.raises(DatasetError, match=r"neg_category_index has a category_index that is not"):
        audit(str(out), deep=True)


def test_refuses_an_unfinished_folder(tmp_path):
    with pytest.raises(DatasetError, match="ingest has not finished"):
        audit_shards(str(tmp_path))
