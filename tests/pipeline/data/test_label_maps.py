"""Ingest of custom label maps and BDD100K from folders and zips, valid and broken."""

import io
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.data.audit import audit
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import BddIngest, SemanticIngest
from pipeline.data.manifest import read_manifest
from pipeline.data.schema import PLANES, SEMANTIC_SCHEMA
from pipeline.data.semantic_fields import VOID, decode_plane, find_nearest_classes
from pipeline.errors import DatasetError
from tests.pipeline.data.street_samples import bdd, blocks, label_maps, photo, png, zip_folders


def config(root, **changes) -> SemanticIngest:
    given = {"root": str(root), "split": "train", "out": f"{root}/out", "workers": 0, **changes}
    return SemanticIngest(**given)


def bdd_config(root, **changes) -> BddIngest:
    given = {"root": str(root), "split": "train", "out": f"{root}/out", "workers": 0, **changes}
    return BddIngest(**given)


def rows(root) -> list[dict]:
    files = [shard.file for shard in read_manifest(f"{root}/out").shards]
    return [row for file in files for row in pq.read_table(f"{root}/out/{file}").to_pylist()]


@pytest.fixture
def maps(tmp_path):
    return label_maps(tmp_path / "maps")


def test_rows_hold_image_label_and_its_fields(maps):
    result = ingest_dataset(config(maps))
    assert (result["images"], result["rejects"]) == (4, 0)
    found = rows(maps)
    assert pq.read_schema(maps / "out" / "part-00000.parquet").equals(SEMANTIC_SCHEMA)
    pixels, images = np.zeros(3, int), np.zeros(3, int)
    for number, row in enumerate(found):
        assert (row["image_id"], row["file_name"]) == (number + 1, f"p{number}.jpg")
        assert row["image"] == (maps / "images" / "train" / f"p{number}.jpg").read_bytes()
        label = blocks(number)
        assert (row["height"], row["width"]) == label.shape
        for name, plane in zip(PLANES, (label, *find_nearest_classes(label)), strict=True):
            np.testing.assert_array_equal(decode_plane(row[name]), plane)
        counts = np.bincount(label.ravel(), minlength=256)[:3]
        assert row["category_index"] == np.flatnonzero(counts).tolist()
        assert row["class_px"] == counts[counts > 0].tolist()
        pixels += counts
        images += counts > 0
    manifest = read_manifest(f"{maps}/out")
    assert manifest.task == "semantic"
    assert [(each.category_id, each.name) for each in manifest.categories] == [
        (0, "ground"),
        (1, "house"),
        (2, "tree"),
    ]
    assert manifest.category_px == tuple(pixels)
    assert manifest.category_images == tuple(images)
    assert audit(f"{maps}/out", deep=True)["problems"] == 0


def test_values_may_be_any_and_void_may_be_several(maps):
    values = np.array([7, 40, 12, *[9] * 253], np.uint8)
    for number in range(4):
        Image.fromarray(values[blocks(number)]).save(maps / "labels" / "train" / f"p{number}.png")
    (maps / "names.txt").write_text("40 a tall house\n7 ground\n12 tree\n")
    ingest_dataset(config(maps, classes_file=f"{maps}/names.txt", void=(9, 255)))
    named = [(e.category_id, e.name) for e in read_manifest(f"{maps}/out").categories]
    assert named == [(7, "ground"), (12, "tree"), (40, "a tall house")]
    index = np.array([0, 2, 1, *[VOID] * 253], np.uint8)
    label = decode_plane(rows(maps)[0]["label"])
    np.testing.assert_array_equal(label, index[blocks(0)])


def test_other_folder_layouts_are_accepted(maps, tmp_path):
    for kind in ("images", "labels"):
        shutil.copytree(maps / kind / "train", tmp_path / "by_split" / "train" / kind)
        shutil.copytree(maps / kind / "train", tmp_path / "flat" / kind)
    for path in (tmp_path / "flat" / "labels").iterdir():
        path.rename(path.with_name(path.stem + "_mask.png"))
    names = {"classes": ("a", "b", "c")}
    assert ingest_dataset(config(tmp_path / "by_split", **names))["images"] == 4
    flat = config(tmp_path / "flat", label_ending="_mask.png", **names)
    assert ingest_dataset(flat)["images"] == 4
    zip_folders(maps, "all.zip", "images", "labels")
    assert ingest_dataset(config(maps))["images"] == 4


def _jpeg(number: int) -> bytes:
    out = io.BytesIO()
    photo(number).save(out, format="JPEG")
    return out.getvalue()


def _palette() -> bytes:
    image = Image.fromarray(blocks(1)).convert("P")
    image.putpalette(list(range(256)) * 3)
    image.putdata(blocks(1).ravel().tolist())
    return png(image)


_BROKEN = {
    "label_missing": ("labels/train/p1.png", None),
    "image_missing": ("images/train/p1.jpg", None),
    "label_unreadable": ("labels/train/p1.png", png(blocks(1))[:-60]),
    "image_unreadable": ("images/train/p1.jpg", _jpeg(1)[:2000]),
    "label_format": ("labels/train/p1.png", png(photo(1))),
    "label_palette": ("labels/train/p1.png", _palette()),
    "label_depth": ("labels/train/p1.png", png(blocks(1).astype(np.uint16))),
    "label_size": ("labels/train/p1.png", png(blocks(1, size_hw=(40, 96)))),
    "label_value": ("labels/train/p1.png", png(blocks(1, classes=5))),
    "image_twice": ("images/train/p1.png", png(photo(1))),
}


@pytest.mark.parametrize("kind", _BROKEN)
def test_each_kind_of_damage_is_reported_and_dropped(maps, kind):
    name, data = _BROKEN[kind]
    (maps / name).unlink(missing_ok=True)
    if data is not None:
        (maps / name).write_bytes(data)
    with pytest.raises(DatasetError, match=kind) as caught:
        ingest_dataset(config(maps))
    assert "python jobs/ingest.py semantic" in str(caught.value)
    assert not (maps / "out" / "dataset.json").exists()

    result = ingest_dataset(config(maps, on_bad="drop"))
    (reject,) = pq.read_table(maps / "out" / "rejects.parquet").to_pylist()
    assert (reject["kind"], reject["action"]) == (kind, "dropped")
    assert "p1" in reject["file_name"]
    kept = {row["file_name"] for row in rows(maps)}
    whole = {f"p{number}.jpg" for number in range(4)}
    assert kept == (whole if kind == "image_twice" else whole - {"p1.jpg"})
    assert result["rejects"] == 1


def test_reports_unknown_values_with_their_pixels(maps):
    label = blocks(1)
    label[0, :7], label[1, 0] = 77, 99
    Image.fromarray(label).save(maps / "labels" / "train" / "p1.png")
    message = (
        r"image 2, p1\.jpg: p1\.png: values 77 \(7 pixels\), 99 \(1 pixels\); classes have 0 to 2"
    )
    with pytest.raises(DatasetError, match=message):
        ingest_dataset(config(maps))


def test_fix_takes_palette_indices(maps):
    (maps / "labels" / "train" / "p1.png").write_bytes(_palette())
    result = ingest_dataset(config(maps, on_bad="fix"))
    assert (result["images"], result["fixed"], result["rejects"]) == (4, 1, 0)
    np.testing.assert_array_equal(decode_plane(rows(maps)[1]["label"]), blocks(1))


def test_a_label_of_void_alone_is_kept_with_a_notice(maps):
    Image.fromarray(np.full_like(blocks(1), 255)).save(maps / "labels" / "train" / "p1.png")
    assert ingest_dataset(config(maps))["notices"] == 1
    assert read_manifest(f"{maps}/out").notices == {"label_void": 1}
    assert rows(maps)[1]["category_index"] == []


def test_the_next_run_takes_a_repaired_label(maps):
    path = maps / "labels" / "train" / "p1.png"
    path.write_bytes(png(blocks(1))[:-60])
    with pytest.raises(DatasetError, match="label_unreadable"):
        ingest_dataset(config(maps))
    path.write_bytes(png(blocks(1)))
    assert ingest_dataset(config(maps))["images"] == 4


def test_an_edited_label_makes_another_data_set(maps):
    ingest_dataset(config(maps))
    Image.fromarray(np.zeros_like(blocks(1))).save(maps / "labels" / "train" / "p1.png")
    with pytest.raises(DatasetError, match="--overwrite"):
        ingest_dataset(config(maps))
    ingest_dataset(config(maps, overwrite=True))
    assert not decode_plane(rows(maps)[1]["label"]).any()


@pytest.mark.parametrize(
    "changes", [{"classes": ("ground", "house", "bush")}, {"void": (254, 255)}]
)
def test_other_classes_make_another_data_set(maps, changes):
    ingest_dataset(config(maps))
    with pytest.raises(DatasetError, match="--overwrite"):
        ingest_dataset(config(maps, **changes))


def test_swapped_folders_are_recognized(maps):
    swapped = {"images": f"{maps}/labels/train", "labels": f"{maps}/images/train"}
    with pytest.raises(DatasetError, match=r"no image has a label.*folders swapped"):
        ingest_dataset(config(maps, **swapped))
    for path in (maps / "images" / "train").iterdir():
        Image.open(path).save(path.with_suffix(".png"))
        path.unlink()
    with pytest.raises(DatasetError, match="the folders are swapped"):
        ingest_dataset(config(maps, **swapped))
    assert not (maps / "out").exists()


def test_a_gray_photo_with_a_color_mask_is_not_called_swapped(maps):
    for kind, mode in (("images", "L"), ("labels", "RGB")):
        for path in (maps / kind / "train").iterdir():
            Image.open(path).convert(mode).save(path.with_suffix(".png"))
            if path.suffix != ".png":
                path.unlink()
    with pytest.raises(DatasetError) as raised:
        ingest_dataset(config(maps))
    assert "label_format" in str(raised.value)
    assert "it has 3 color channels; if they are equal, keep one: " in str(raised.value)
    assert "swapped" not in str(raised.value)


def test_missing_folders_and_classes_are_reported_with_the_existing_ones(maps):
    with pytest.raises(DatasetError, match=r"neither images/val nor val/images.*train/.*--split"):
        ingest_dataset(config(maps, split="val"))
    with pytest.raises(DatasetError, match=r"nowhere does not exist; .*--labels"):
        ingest_dataset(config(maps, labels="nowhere"))
    (maps / "classes.txt").unlink()
    with pytest.raises(DatasetError, match=r"classes\.txt does not exist; .*--classes"):
        ingest_dataset(config(maps))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("a\nb\na\n", "a name is used twice"),
        ("1 a\n1 b\n", "a value is used twice"),
        ("300 a\n1 b\n", r"values must be in 0\.\.254"),
        ("255 a\n1 b\n", r"values must be in 0\.\.254"),
    ],
)
def test_an_invalid_classes_file_is_reported_with_the_format(maps, text, message):
    (maps / "classes.txt").write_text(text)
    with pytest.raises(DatasetError, match=f"{message}.*VALUE NAME"):
        ingest_dataset(config(maps))


def test_wrong_flags_are_reported_together():
    with pytest.raises(DatasetError) as caught:
        config("x", classes=("a", "a"), void=(256,), label_ending=".bmp", workers=-2)
    for message in ("workers", "repeat", "[0, 255]", ".png"):
        assert message in str(caught.value)
    with pytest.raises(DatasetError, match="one of the two"):
        ingest_dataset(config("x", classes=("a", "b"), void=(1,)))


def test_the_suggested_command_repeats_the_users_flags():
    words = config("my maps", classes=("road", "tall house"), void=(0, 255)).command("drop")
    assert words == (
        "python jobs/ingest.py semantic --root 'my maps' --split train --out 'my maps/out' "
        "--workers 0 --classes road 'tall house' --void 0 255 --on-bad drop"
    )


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_bdd_is_read_in_both_layouts_unpacked_and_zipped(tmp_path, old, packed):
    root = bdd(tmp_path / "bdd", old=old)
    (root / ("seg" if old else "labels") / "colormaps").mkdir()
    if packed and old:
        zip_folders(root, "bdd100k_seg.zip", "seg", under="bdd100k/")
    elif packed:
        zip_folders(root, "bdd100k_images_10k.zip", "images", under="bdd100k/")
        zip_folders(root, "bdd100k_sem_seg_labels_trainval.zip", "labels", under="bdd100k/")
    result = ingest_dataset(bdd_config(root))
    assert (result["images"], result["rejects"]) == (5, 0)
    manifest = read_manifest(f"{root}/out")
    assert [each.category_id for each in manifest.categories] == list(range(19))
    assert manifest.categories[13].name == "car"
    assert manifest.category_images[13] == 5
    assert manifest.category_images[14] == 0


def test_missing_bdd_is_reported_with_its_download(tmp_path):
    root = bdd(tmp_path / "bdd")
    shutil.rmtree(root / "labels")
    message = r"labels/sem_seg/masks/train or seg/labels/train: not in .*has images/.*berkeley"
    with pytest.raises(DatasetError, match=message):
        ingest_dataset(bdd_config(root))


def test_an_incomplete_bdd_is_reported_with_counts_and_its_download(tmp_path, caplog):
    root = bdd(tmp_path / "bdd")
    for path in list((root / "images" / "10k" / "train").iterdir())[:2]:
        path.unlink()
    with caplog.at_level("WARNING"), pytest.raises(DatasetError) as caught:
        ingest_dataset(bdd_config(root))
    assert "train has 5 of the official 7000 images" in caplog.text
    assert "image_missing        2" in str(caught.value)
    assert "bdd100k_images_10k.zip" in str(caught.value)


def test_refuses_bdd_with_masks_of_another_task(tmp_path):
    root = bdd(tmp_path / "bdd")
    for path in (root / "labels" / "sem_seg" / "masks" / "train").iterdir():
        path.write_bytes(png(np.full((48, 96), 26, np.uint8)))
    with pytest.raises(DatasetError, match=r"label_value +5 .*\n.*values 26 \(4608 pixels\)"):
        ingest_dataset(bdd_config(root))


def test_real_bdd_layout(real_data, tmp_path):
    result = ingest_dataset(bdd_config(real_data / "bdd_mini", out=str(tmp_path / "out")))
    assert (result["images"], result["rejects"]) == (6, 0)
    assert audit(str(tmp_path / "out"), deep=True)["problems"] == 0
