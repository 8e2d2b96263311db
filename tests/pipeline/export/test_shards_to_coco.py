"""Shards written back as COCO: what pycocotools reads, and equal rows when they are ingested."""

import contextlib
import io
import json

import pytest
from pycocotools.coco import COCO

from pipeline.data.ingest import CocoIngest, ingest_dataset
from pipeline.data.manifest import read_manifest
from pipeline.errors import DatasetError
from pipeline.export.shards import export_shards
from tests.pipeline.data.coco_samples import SPLIT, small_coco


def ingest(root, out):
    ingest_dataset(CocoIngest(root=str(root), split=SPLIT, out=str(out)))
    return read_manifest(str(out))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A data set with polygons, run lengths and crowds, and its shards."""
    folder = tmp_path_factory.mktemp("source")
    root = small_coco(folder / "coco", images=6)
    file = root / "annotations" / f"instances_{SPLIT}.json"
    content = json.loads(file.read_text())
    return content, root, ingest(root, folder / "shards" / SPLIT), folder / "shards"


def test_ingest_export_ingest_gives_equal_rows(source, tmp_path):
    content, root, before, shards = source
    result = export_shards(str(shards), str(tmp_path / "coco"), split=SPLIT)
    assert result["images"] == len(content["images"])
    assert result["annotations"] == len(content["annotations"])
    assert result["crowds"] == sum(each["iscrowd"] for each in content["annotations"]) > 0
    after = ingest(tmp_path / "coco", tmp_path / "again")
    assert [each.digest for each in after.shards] == [each.digest for each in before.shards]
    assert after.categories == before.categories
    for image in content["images"]:
        name = image["file_name"]
        assert (tmp_path / "coco" / SPLIT / name).read_bytes() == (root / SPLIT / name).read_bytes()


def test_pycocotools_reads_the_file_with_the_original_ids_and_masks(source, tmp_path):
    _, root, _, shards = source
    # The split's own folder does as well.
    result = export_shards(str(shards / SPLIT), str(tmp_path), split=SPLIT, license="CC-BY 4.0")
    with contextlib.redirect_stdout(io.StringIO()):
        first = COCO(str(root / "annotations" / f"instances_{SPLIT}.json"))
        second = COCO(result["annotations_file"])
    assert second.dataset["info"]["license"] == "CC-BY 4.0"
    assert first.anns.keys() == second.anns.keys()
    assert first.imgs.keys() == second.imgs.keys()
    for key, annotation in first.anns.items():
        assert (first.annToMask(annotation) == second.annToMask(second.anns[key])).all()
        assert second.anns[key]["category_id"] == annotation["category_id"]
        assert second.anns[key]["iscrowd"] == annotation["iscrowd"]


def test_a_folder_without_shards_says_how_to_make_them(tmp_path):
    with pytest.raises(DatasetError, match="Create or complete it with"):
        export_shards(str(tmp_path), str(tmp_path / "out"), split=SPLIT)
