"""Mean IoU equals cityscapesScripts', boundary F its definition, and errors list all problems."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as scripts  # noqa: N813
from PIL import Image
from scipy.ndimage import binary_dilation
from skimage.morphology import disk

from pipeline.data.cityscapes_classes import CLASSES, TRAIN_CLASSES
from pipeline.errors import DatasetError, RecipeError
from pipeline.evaluation.boundary_fscore import RADII_PX, boundary_f, match_boundaries
from pipeline.evaluation.class_table import format_boundary_f, format_miou
from pipeline.evaluation.label_files import LabelFolders, evaluate_boundary_f, evaluate_miou
from pipeline.evaluation.mean_iou import count_pixels, mean_iou
from tests.pipeline.data.street_samples import gray_png

VOID = 255
LABEL_IDS = [each.label_id for each in CLASSES if each.label_id >= 0]


def draw(seed: int, *, classes: list[int], size_hw: tuple[int, int] = (60, 80)) -> np.ndarray:
    """Draw overlapping ellipses of some classes."""
    g = np.random.default_rng(seed)
    labels = np.full(size_hw, classes[0], np.uint8)
    for value in g.choice(classes, 12):
        center = (int(g.integers(size_hw[1])), int(g.integers(size_hw[0])))
        axes = (int(g.integers(2, 25)), int(g.integers(2, 25)))
        cv2.ellipse(labels, center, axes, int(g.integers(180)), 0, 360, int(value), -1)
    return labels


def perturb(labels: np.ndarray, seed: int, *, wrong: int) -> np.ndarray:
    """Shift a label map by some pixels, and add a patch of another class."""
    g = np.random.default_rng(seed)
    prediction = np.roll(labels, tuple(g.integers(-4, 5, 2)), (0, 1)).copy()
    y, x = int(g.integers(40)), int(g.integers(60))
    prediction[y : y + 15, x : x + 15] = wrong
    return prediction


def save(maps: dict[str, np.ndarray], folder: Path, suffix: str) -> Path:
    folder.mkdir(parents=True)
    for name, labels in maps.items():
        Image.fromarray(labels).save(folder / f"{name}{suffix}", compress_level=1)
    return folder


def name_of(number: int) -> str:
    return f"ulm_{number:06d}_000019"


def run_cityscapesscripts(truth: Path, found: Path) -> dict[str, Any]:
    args = scripts.args
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    files = sorted(truth.rglob("*_gtFine_labelIds.png"))
    predictions = [found / each.name.replace("_gtFine_labelIds", "_pred") for each in files]
    return scripts.evaluateImgLists(list(map(str, predictions)), list(map(str, files)), args)


def label_folders(folder: Path, truth: dict[str, np.ndarray]) -> tuple[Path, Path]:
    found = {name: perturb(labels, n, wrong=26) for n, (name, labels) in enumerate(truth.items())}
    return (
        save(truth, folder / "val", "_gtFine_labelIds.png"),
        save(found, folder / "found", "_pred.png"),
    )


def test_mean_iou_equals_cityscapesscripts(tmp_path: Path) -> None:
    # Void, ignored classes and 13 of the 19 evaluated classes, in both.
    classes = [0, 3, 9, 14, 29, *range(7, 9), 11, 12, 13, 17, *range(21, 27), 33]
    truth, found = label_folders(tmp_path, {name_of(n): draw(n, classes=classes) for n in range(6)})
    folders = LabelFolders(
        truth=str(truth),
        detections=str(found),
        classes="cityscapes",
        truth_ids="label",
        detections_ids="label",
    )
    measured, expected = evaluate_miou(folders), run_cityscapesscripts(truth, found)
    assert measured.miou == expected["averageScoreClasses"]
    theirs = {each.name: expected["classScores"][each.name] for each in TRAIN_CLASSES}
    np.testing.assert_equal(measured.per_class, theirs)
    assert sum(map(math.isnan, theirs.values())) == 6
    assert 0.3 < measured.miou < 0.9


def test_mean_iou_of_real_frames_equals_cityscapesscripts(real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / "cityscapes_mini/gtFine/val").rglob("*_gtFine_labelIds.png"))[:4]
    truth, found = label_folders(
        tmp_path,
        {
            each.name.removesuffix("_gtFine_labelIds.png"): np.asarray(Image.open(each))
            for each in files
        },
    )
    folders = LabelFolders(
        truth=str(truth),
        detections=str(found),
        classes="cityscapes",
        truth_ids="label",
        detections_ids="label",
    )
    measured, expected = evaluate_miou(folders), run_cityscapesscripts(truth, found)
    assert measured.miou == expected["averageScoreClasses"]
    assert measured.images == 4


def test_class_that_is_only_predicted_is_not_in_the_mean() -> None:
    truth = np.zeros((4, 4), np.uint8)
    truth[2:] = 1
    truth[3] = VOID
    prediction = np.array([[0, 0, 0, 2]] * 4, np.uint8)
    prediction[1, 0] = VOID
    measured = mean_iou(
        count_pixels(truth, prediction, num_classes=3), names=["a", "b", "c"], images=1
    )
    assert measured.per_class == {"a": 5 / 11, "b": 0.0, "c": pytest.approx(math.nan, nan_ok=True)}
    assert measured.miou == 5 / 22
    assert measured.pixels == {"a": 8, "b": 4, "c": 0}
    assert measured.notices[0].startswith("1 of 12 pixels have no class")
    assert "c: predicted but not in the truth" in measured.notices[1]
    assert "a mean of 0.1515" in measured.notices[1]


def find_outline(mask: np.ndarray) -> np.ndarray:
    """Find the outline as GSCNN does (seg2bmap)."""
    east, south, south_east = (np.zeros_like(mask) for _ in range(3))
    east[:, :-1] = mask[:, 1:]
    south[:-1] = mask[1:]
    south_east[:-1, :-1] = mask[1:, 1:]
    found = (mask ^ east) | (mask ^ south) | (mask ^ south_east)
    found[-1] = mask[-1] ^ east[-1]
    found[:, -1] = mask[:, -1] ^ south[:, -1]
    found[-1, -1] = False
    return found


def compute_f(truth: np.ndarray, prediction: np.ndarray, *, index: int, radius_px: int) -> float:
    """Compute F of a class in an image from its definition, by dilation with a disk."""
    known = truth != VOID
    of_truth, of_found = (find_outline((each == index) & known) for each in (truth, prediction))
    near_truth, near_found = (
        binary_dilation(each, disk(radius_px)) for each in (of_truth, of_found)
    )
    match bool(of_found.any()), bool(of_truth.any()):
        case False, False:
            precision, recall = 1.0, 1.0
        case False, True:
            precision, recall = 1.0, 0.0
        case True, False:
            precision, recall = 0.0, 1.0
        case _:
            precision = (of_found & near_truth).sum() / of_found.sum()
            recall = (of_truth & near_found).sum() / of_truth.sum()
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def assert_f(pairs: list[tuple[np.ndarray, np.ndarray]], *, num_classes: int) -> None:
    counts = [match_boundaries(t, p, num_classes=num_classes) for t, p in pairs]
    measured = boundary_f(counts, names=[str(k) for k in range(num_classes)])
    for index in range(num_classes):
        expected = [
            sum(compute_f(t, p, index=index, radius_px=r) for t, p in pairs) / len(pairs)
            for r in RADII_PX
        ]
        assert measured.per_class[str(index)] == pytest.approx(expected, abs=1e-15), index
    means = np.mean([measured.per_class[str(k)] for k in range(num_classes)], axis=0)
    assert measured.f == pytest.approx(tuple(means), abs=1e-15)


def test_boundary_f_equals_definition() -> None:
    classes = [0, 1, 2, 3, VOID]
    pairs = []
    for seed in range(8):
        truth = draw(seed, classes=classes)
        prediction = perturb(truth, seed, wrong=4)
        # Predictions of even seeds have a class everywhere, others have void.
        prediction[prediction == VOID] = seed % 2 * VOID
        pairs.append((truth, prediction))
    # One class only: no outline.
    pairs.append((np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)))
    pairs.append((np.full((60, 80), VOID, np.uint8), np.zeros((60, 80), np.uint8)))
    assert_f(pairs, num_classes=6)


def test_boundary_f_of_real_frames_equals_definition(real_data: Path) -> None:
    files = sorted((real_data / "bdd_mini/labels/sem_seg/masks/val").glob("*.png"))
    truth = [np.asarray(Image.open(each))[300:420, 500:700] for each in files]
    assert_f([(each, perturb(each, 3, wrong=13)) for each in truth], num_classes=19)


def test_absent_one_and_skip() -> None:
    truth = np.zeros((40, 40), np.uint8)
    truth[10:30, 10:30] = 1
    counts = [
        match_boundaries(truth, np.roll(truth, 4, 1), num_classes=3),
        match_boundaries(np.zeros_like(truth), np.zeros_like(truth), num_classes=3),
    ]
    names = ["ground", "square", "nowhere"]
    one = boundary_f(counts, names=names)
    skip = boundary_f(counts, names=names, absent="skip")
    assert one.per_class["nowhere"] == (1, 1, 1, 1)
    assert all(map(math.isnan, skip.per_class["nowhere"]))
    at_3 = skip.per_class["square"][0]
    assert 0.5 < at_3 < 1
    assert one.per_class["square"][0] == pytest.approx((1 + at_3) / 2)
    assert skip.per_class["square"][1:] == (1, 1, 1)
    assert skip.f[0] == pytest.approx(at_3)
    assert skip.images_with == {"ground": 1, "square": 1, "nowhere": 0}
    assert "as in published numbers (absent=one)" in format_boundary_f(one)
    assert "(absent=skip)" in format_boundary_f(skip)


def test_order_of_images_does_not_change_scores() -> None:
    pairs = [(t := draw(n, classes=[0, 1, 2, VOID]), perturb(t, n, wrong=1)) for n in range(9)]
    tables = [count_pixels(t, p, num_classes=3) for t, p in pairs]
    counts = [match_boundaries(t, p, num_classes=3) for t, p in pairs]
    names = ["a", "b", "c"]
    whole = mean_iou(sum(tables), names=names, images=9), boundary_f(counts, names=names)
    shared = [sum(tables[rank::4]) for rank in range(4)]
    order = [n for rank in (2, 0, 3, 1) for n in range(rank, 9, 4)]
    assert mean_iou(sum(shared), names=names, images=9) == whole[0]
    assert boundary_f([counts[n] for n in order], names=names) == whole[1]


def test_incomparable_label_maps_raise() -> None:
    truth = np.array([[0, 7, 254]], np.uint8)
    with pytest.raises(DatasetError, match="a truth holds 7, 254: classes are 0 to 6, 255 is void"):
        count_pixels(truth, truth, num_classes=7)
    with pytest.raises(
        DatasetError, match=r"prediction of \(3, 1\) pixels for a truth of \(1, 3\)"
    ):
        match_boundaries(truth, truth.T, num_classes=255)


def test_file_names_of_bdd_and_of_other_datasets(tmp_path: Path) -> None:
    labels = draw(0, classes=[0, 1, 2, VOID])
    truth = save({"a_train_id": labels, "b_train_id": labels}, tmp_path / "truth", ".png")
    found = save({"a": labels, "b": perturb(labels, 0, wrong=1)}, tmp_path / "found", ".png")
    bdd = LabelFolders(truth=str(truth), detections=str(found), classes="bdd")
    measured = evaluate_miou(bdd)
    assert list(measured.per_class)[:3] == ["road", "sidewalk", "building"]
    assert 0.4 < measured.miou < 1

    nested = save({"x": labels}, tmp_path / "deep/city", ".png").parent
    same = save({"x": labels}, tmp_path / "same/city", ".png").parent
    other = LabelFolders(truth=str(nested), detections=str(same), classes="3")
    assert evaluate_miou(other).miou == 1
    assert evaluate_boundary_f(other, radii_px=(1, 2)).per_class["class 2"] == (1, 1)
    text = format_miou(evaluate_miou(other))
    assert "class 2" in text
    assert "mean" in text


def test_few_bits_and_palettes_are_read_as_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = draw(0, classes=[0, 1, 2, 3])
    save(
        {"two": labels, "four": labels, "palette": labels, "one": labels % 2},
        tmp_path / "t",
        ".png",
    )
    found = tmp_path / "f"
    found.mkdir()
    for name, values, bits in (("two", labels, 2), ("four", labels, 4), ("one", labels % 2, 1)):
        (found / f"{name}.png").write_bytes(gray_png(values, bits))
    image = Image.new("P", labels.shape[::-1])
    image.putdata(labels.ravel().tolist())
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    image.save(found / "palette.png", bits=2)
    for truth, other in (("t", "f"), ("f", "t")):
        folders = LabelFolders(
            truth=str(tmp_path / truth), detections=str(tmp_path / other), classes="4"
        )
        assert evaluate_miou(folders).miou == 1
    assert f"the indices of 1 palette in {found} are taken as classes" in caplog.text
    save(dict.fromkeys(("two", "four", "one", "palette"), labels * 0), tmp_path / "zero", ".png")
    folders = LabelFolders(truth=str(found), detections=str(tmp_path / "zero"), classes="4")
    assert evaluate_miou(folders).miou < 0.5


def test_endings_in_capitals_are_read_and_other_files_are_counted(tmp_path: Path, caplog) -> None:
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    truth = save({"a": labels, "b": labels}, tmp_path / "truth", ".PNG")
    found = save({"a": labels, "b": 1 - labels}, tmp_path / "found", ".png")
    (truth / "c.tif").write_bytes(b"II*")
    scores = evaluate_miou(LabelFolders(truth=str(truth), detections=str(found), classes="2"))
    assert scores.images == 2
    assert scores.miou == pytest.approx(1 / 3)
    assert f"not read in {truth}: .tif 1 (such as c.tif)" in caplog.text


def catch_error(folders: LabelFolders) -> str:
    with pytest.raises(DatasetError) as caught:
        evaluate_miou(folders)
    return str(caught.value)


def test_all_problems_of_two_folders(tmp_path: Path) -> None:
    labels = draw(0, classes=[7, 8, 26])
    truth, found = label_folders(tmp_path, {name_of(n): labels for n in range(8)})
    Image.fromarray(labels.astype(np.uint16)).save(found / f"{name_of(0)}_pred.png")
    Image.fromarray(labels).convert("RGB").save(found / f"{name_of(1)}_pred.png")
    Image.fromarray(labels[:30]).save(found / f"{name_of(2)}_pred.png")
    (found / f"{name_of(3)}_pred.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Image.fromarray(labels + 20).save(found / f"{name_of(4)}_pred.png")
    (found / f"{name_of(5)}_pred.png").rename(found / f"{name_of(55)}_pred.png")
    Image.fromarray(labels).save(found / f"{name_of(6)}_color.png")
    Image.fromarray(labels).save(found / "overview.png")
    Image.fromarray(labels).save(found / f"{name_of(7)}_gtFine_color.png")
    Image.fromarray(labels + 230).save(truth / f"{name_of(7)}_gtFine_labelIds.png")
    text = catch_error(
        LabelFolders(
            truth=str(truth),
            detections=str(found),
            classes="cityscapes",
            truth_ids="label",
            detections_ids="label",
        )
    )
    pred = "_pred.png"
    for expected in (
        f"val: unknown label value (1)\n    {name_of(7)}_gtFine_labelIds.png: 237",
        f"label map is not 8-bit (1)\n    {name_of(0)}{pred}: uint16",
        f"unreadable image (2)\n    {name_of(1)}{pred}: it has 3 color channels",
        f"wrong label map size (1)\n    {name_of(2)}{pred}: 30 x 80, the truth has 60",
        f"unknown label value (1)\n    {name_of(4)}{pred}: 46, read as label ids",
        f"frame without detections (1)\n    {name_of(5)}\n",
        f"frame not in the truth (1)\n    {name_of(55)}{pred}",
        f"several files for one frame (1)\n    {name_of(6)}: ",
        "no frame in the file name (1)\n    overview.png",
        f"ground truth among the detections (1)\n    {name_of(7)}_gtFine_color.png",
    ):
        assert expected in text, expected
    assert text.startswith("10 kinds of problem")


def test_wrong_kind_of_ids(tmp_path: Path) -> None:
    truth, found = label_folders(tmp_path, {name_of(0): draw(0, classes=[7, 26])})
    text = catch_error(LabelFolders(truth=str(truth), detections=str(found), classes="cityscapes"))
    assert "none is *_gtFine_labelTrainIds.png; there are labelIds.png" in text
    train = LabelFolders(
        truth=str(truth), detections=str(found), classes="cityscapes", truth_ids="label"
    )
    assert f"{name_of(0)}_pred.png: 26, read as train ids" in catch_error(train)
    (tmp_path / "empty").mkdir()
    none = LabelFolders(truth=str(tmp_path / "empty"), detections=str(found), classes="3")
    assert "no label maps in the folder (1)\n    0 files; none is *.png" in catch_error(none)


def test_invalid_settings_raise(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"classes 'ade': use cityscapes, bdd, or.*same"):
        LabelFolders(truth=str(tmp_path), detections=str(tmp_path / "."), classes="ade")
    with pytest.raises(
        RecipeError, match="only Cityscapes has label ids; use train ids with classes bdd"
    ):
        LabelFolders(truth="a", detections="b", classes="bdd", truth_ids="label")
    with pytest.raises(RecipeError, match=r"radii \[3, 0\]"):
        evaluate_boundary_f(LabelFolders(truth="a", detections="b", classes="bdd"), radii_px=(3, 0))
