"""The files that predictions are written to: read back, they hold the objects."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import storage
from pipeline.data.manifest import Category
from pipeline.errors import DatasetError, RecipeError
from pipeline.evaluation.metrics import evaluate_detections
from pipeline.prediction.earlier_files import EarlierFiles
from pipeline.prediction.files import cut_out, draw_ids, format_yolo
from pipeline.prediction.folder import predict_folder
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.photo_model import LoadedModel
from pipeline.prediction.video import predict_video

CATEGORIES = (
    Category(category_id=3, category_index=0, name="dark"),
    Category(category_id=8, category_index=1, name="bright disk"),
)


class BrightRegion:
    """Finds the bright pixels of a photo as one object."""

    task = "instance"
    categories = CATEGORIES

    def predict_photo(self, pixels, *, score_threshold=0):
        mask = pixels[..., 0] > 127
        return [make_row(mask, score=0.9)] if mask.any() else []


def make_row(mask, *, score=0.9):
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    x, y, w, h = mask_api.toBbox(rle).tolist()
    return {
        "category_name": "bright disk",
        "category_index": 1,
        "score": score,
        "box_xyxy": [x, y, x + w, y + h],
        "rle": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def draw_disks(*centers, size_hw=(60, 90), radius=12):
    mask = np.zeros(size_hw, np.uint8)
    for center in centers:
        cv2.circle(mask, center, radius, 1, -1)
    return mask


@pytest.fixture
def loaded():
    return LoadedModel(BrightRegion(), "models:/disks/1")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, center in (("a.png", (20, 30)), ("sub/b.png", (70, 20)), ("c.png", (45, 30))):
        pixels = np.repeat(200 * draw_disks(center)[..., None], 3, axis=2)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not a photo")
    return folder


def test_patterns_photos_and_folders_in_all_formats(loaded, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    formats = ("coco", "label-png", "yolo-seg", "cutout")
    result = predict_folder(
        loaded, ["photos/*", "photos/sub"], "out", options=PredictOptions(format=formats)
    )
    assert (result["images"], result["detections"], result["other_files"]) == (3, 3, 1)
    out = tmp_path / "out"
    files = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert files == {
        *("detections.json", "data.yaml"),
        *(f"label_png/{name}.png" for name in ("a", "c", "sub/b")),
        *(f"labels/{name}.txt" for name in ("a", "c", "sub/b")),
        *(f"cutouts/{name}_000_bright_disk.png" for name in ("a", "c", "sub/b")),
    }
    with pytest.raises(DatasetError, match=r"--images: photos/gone\.png; name folders"):
        predict_folder(loaded, ["photos/a.png", "photos/gone.png"], "out")
    label = np.asarray(Image.open(tmp_path / "out/label_png/sub/b.png"))
    np.testing.assert_array_equal(label, draw_disks((70, 20)))
    assert (tmp_path / "out/data.yaml").read_text() == 'names:\n  0: "dark"\n  1: "bright disk"\n'


def test_yolo_polygons_cover_the_mask_in_one_piece_or_several():
    for centers in (((20, 30),), ((20, 30), (70, 20), (60, 45))):
        mask = draw_disks(*centers, radius=9)
        category, *numbers = format_yolo([make_row(mask)], mask.shape).split()
        assert category == "1"
        points = np.array(numbers, float).reshape(-1, 2) * (90, 60) - 0.5
        drawn = cv2.fillPoly(np.zeros_like(mask), [points.round().astype(np.int32)], 1)
        assert (drawn | mask).sum() == drawn.sum()
        # The lines between pieces have no width, but fillPoly draws them.
        assert drawn.sum() - mask.sum() < 40 * len(centers)


def test_better_objects_are_on_top_in_label_pngs():
    first, second = draw_disks((40, 30)), draw_disks((50, 30))
    ids = draw_ids([make_row(first), make_row(second, score=0.5)], first.shape)
    assert (ids[first > 0] == 1).all()
    assert (ids[(second > 0) & (first == 0)] == 2).all()


def test_a_cut_out_is_opaque_inside_and_soft_at_its_boundary():
    mask = draw_disks((40, 30))
    pixels = np.full((60, 90, 3), 80, np.uint8)
    piece = cut_out(pixels, make_row(mask))
    assert piece.shape == (29, 29, 4)
    alpha = piece[..., 3]
    assert alpha[14, 14] == 255
    assert alpha[0, 0] == 0
    assert ((alpha > 30) & (alpha < 225)).sum() > 40
    # An object that the border of the photo cuts is opaque there.
    cut = cut_out(pixels, make_row(draw_disks((40, 0))))
    assert cut[0, cut.shape[1] // 2, 3] == 255


def test_bsm_evaluate_takes_detections_of_a_folder(loaded, photos, tmp_path):
    predict_folder(loaded, str(photos), tmp_path / "out")
    file = str(tmp_path / "out" / "detections.json")
    truth = {
        "images": [
            {"id": 71, "file_name": "sub/b.png", "height": 60, "width": 90},
            {"id": 70, "file_name": "elsewhere/a.png", "height": 60, "width": 90},
            {"id": 5, "file_name": "c.png", "height": 60, "width": 90},
        ],
        "annotations": [],
        "categories": [{"id": 8, "name": "bright disk"}],
    }
    for image_id, center in ((71, (70, 20)), (70, (20, 30)), (5, (45, 30))):
        row = make_row(draw_disks(center))
        fields = {"category_id": 8, "iscrowd": 0, "area": 400, "segmentation": row["rle"]}
        number = len(truth["annotations"]) + 1
        truth["annotations"].append({"id": number, "image_id": image_id, **fields})
    measured = evaluate_detections(truth, file, metric="segm")
    assert measured.ap == 1.0
    assert "predict again with --score 0" in " ".join(measured.notices)
    truth["images"][2]["file_name"] = "other.png"
    with pytest.raises(DatasetError, match=r"1 photo of 3 cannot be matched[^$]*c\.png: no images"):
        evaluate_detections(truth, file, metric="segm")


def test_a_video_becomes_a_video_with_masks_and_detections_of_each_frame(loaded, tmp_path):
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (90, 60))
    for x in (20, 40, 60):
        writer.write(np.repeat(200 * draw_disks((x, 30))[..., None], 3, axis=2))
    writer.release()
    result = predict_video(loaded, [str(clip)], tmp_path / "out", options=PredictOptions())
    assert (result["images"], result["detections"]) == (3, 3)
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [each["file_name"] for each in content["images"]] == [
        f"clip.avi:{frame:06d}" for frame in range(3)
    ]
    centers = [row["bbox"][0] + row["bbox"][2] / 2 for row in content["detections"]]
    np.testing.assert_allclose(centers, [20, 40, 60], atol=1.5)
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    ok, frame = capture.read()
    assert ok
    assert frame.shape == (60, 90, 3)
    # Gray became the color of the mask.
    assert np.ptp(frame[30, 20].astype(int)) > 20
    with pytest.raises(RecipeError, match="--format cutout: not for videos"):
        predict_video(
            loaded, [str(clip)], tmp_path / "out", options=PredictOptions(format=("cutout",))
        )
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DatasetError, match="OpenCV reads no frame of it"):
        predict_video(
            loaded, [str(tmp_path / "broken.mp4")], tmp_path / "out", options=PredictOptions()
        )


def test_files_of_an_earlier_run_that_stay_are_counted(tmp_path, caplog):
    earlier = {"images": [{"file_name": "a.bmp"}, {"file_name": "b.jpg"}, {"file_name": "c.jpg"}]}
    (tmp_path / "labels").mkdir()
    texts = {"detections.json": json.dumps(earlier), "a.bmp.jpg": "", "b.jpg": "", "mine.jpg": ""}
    for name, text in {**texts, "labels/c.txt": "", "labels/a.txt": ""}.items():
        (tmp_path / name).write_text(text)
    files = EarlierFiles(tmp_path)
    for name in ("detections.json", "b.jpg", "labels/a.txt"):
        storage.write_bytes_atomic(str(tmp_path / name), b"")
    assert files.warn() == 2
    assert "2 files of an earlier run that this one did not write" in caplog.text
    assert "a.bmp.jpg, labels/c.txt" in caplog.text
    assert EarlierFiles(tmp_path / "none").warn() == 0
