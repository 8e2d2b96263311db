"""Cityscapes' instance AP equals cityscapesScripts', and errors list all problems."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as scripts  # noqa: N813
from cityscapesscripts.helpers.labels import labels
from PIL import Image
from pycocotools import mask as mask_api

from pipeline.data.cityscapes_classes import CLASSES, IGNORE_ID, INSTANCE_CLASSES, TRAIN_CLASSES
from pipeline.errors import DatasetError
from pipeline.evaluation.bands import mask_to_boundary
from pipeline.evaluation.cityscapes_ap import CityscapesMetrics, cityscapes_metrics
from pipeline.evaluation.cityscapes_files import TRUTH_SUFFIX, evaluate_cityscapes
from pipeline.evaluation.cityscapes_frames import FoundMask, count_frame, decode_masks

IDS = [each.label_id for each in INSTANCE_CLASSES]

Frames = dict[str, tuple[np.ndarray, list[FoundMask]]]


def test_class_table_equals_cityscapesscripts() -> None:
    for ours, theirs in zip(CLASSES, labels, strict=True):
        assert (ours.name, ours.label_id) == (theirs.name, theirs.id)
        assert ours.train_id == (theirs.trainId if theirs.trainId >= 0 else IGNORE_ID)
        assert ours.has_instances == theirs.hasInstances
        assert ours.is_ignored == theirs.ignoreInEval
    assert [each.train_id for each in TRAIN_CLASSES] == list(range(19))
    assert IDS == [24, 25, 26, 27, 28, 31, 32, 33]


def perturb(instance_map: np.ndarray, *, seed: int, reach: int) -> Iterator[FoundMask]:
    """Yield no, one or several imprecise masks per object, and some false positives.

    Includes ties of scores, groups, ignored classes and empty masks.
    """
    g = np.random.default_rng(seed)
    things = {each.label_id for each in CLASSES if each.has_instances}
    for value in np.unique(instance_map):
        label_id = int(value) if value < 1000 else int(value) // 1000
        for _ in range(int(g.choice([0, 1, 1, 1, 2, 3])) if label_id in things else 0):
            mask = (instance_map == value).astype(np.uint8)
            side = 2 * int(g.integers(0, reach)) + 1
            way = g.random()
            if way < 0.3:
                mask = cv2.dilate(mask, np.ones((side, side), np.uint8))
            elif way < 0.5:
                mask = cv2.erode(mask, np.ones((side, side), np.uint8))
            elif way < 0.9:
                mask = np.roll(mask, tuple(g.integers(-reach, reach + 1, 2)), (0, 1))
            other = g.random() > 0.85 or label_id not in IDS
            # Higher scores for better masks, so that AP is not near 0.
            score = float(np.round(0.4 * g.random() + 0.6 * (way < 0.5 or way > 0.9), 1))
            yield FoundMask(int(g.choice(IDS)) if other else label_id, score, mask.astype(bool))
    for _ in range(3):
        mask = np.zeros(instance_map.shape, bool)
        y, x = (int(g.integers(side)) for side in mask.shape)
        mask[y : y + 20, x : x + 30] = True
        yield FoundMask(int(g.choice(IDS)), float(np.round(g.random(), 1)), mask)


def draw_instance_map(seed: int) -> np.ndarray:
    """Draw overlapping objects, groups, small objects, void and ignored classes."""
    g = np.random.default_rng(seed)
    instance_map = np.full((70, 90), 7, np.uint16)
    values = [0, 3, 29, 30, 29001, *IDS, *(1000 * each + n for each in IDS for n in range(3))]
    for value in g.choice(values, 25):
        y, x = g.integers(60), g.integers(80)
        instance_map[y : y + g.integers(4, 30), x : x + g.integers(4, 40)] = value
    return instance_map


def name_of(number: int) -> str:
    return f"ulm_{number:06d}_000019"


def write(frames: Frames, folder: Path) -> tuple[Path, Path]:
    truth, found = folder / "val", folder / "found"
    (truth / "ulm").mkdir(parents=True)
    (found / "masks").mkdir(parents=True)
    for name, (instance_map, masks) in frames.items():
        Image.fromarray(instance_map).save(truth / "ulm" / f"{name}{TRUTH_SUFFIX}")
        lines = []
        for number, each in enumerate(masks):
            path = f"masks/{name}_{number}.png"
            pixels = each.mask.astype(np.uint8) * 255
            Image.fromarray(pixels).save(found / path, compress_level=1)
            lines.append(f"{path} {each.label_id} {each.score}\n")
        (found / f"{name}_pred.txt").write_text("".join(lines))
    return truth, found


def run_cityscapesscripts(
    truth: Path, found: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    # The package needs numpy < 2.4, and writes all matches to the working folder.
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    monkeypatch.setattr(scripts, "writeDict2JSON", lambda *_: None)
    args = scripts.args
    args.predictionPath, args.predictionWalk = str(found), None
    args.JSONOutput, args.quiet = False, True
    args.gtInstancesFile = str(found / "none.json")
    files = sorted(map(str, truth.rglob(f"*{TRUTH_SUFFIX}")))
    predictions = [scripts.getPrediction(each, args) for each in files]
    return scripts.evaluateImgLists(predictions, files, args)["averages"]


def assert_equal(metrics: CityscapesMetrics, expected: dict[str, Any]) -> None:
    # Equal to the last bit.
    np.testing.assert_equal(tuple(metrics.mask), (expected["allAp"], expected["allAp50%"]))
    for name, scores in metrics.mask_by_class.items():
        theirs = expected["classes"][name]
        np.testing.assert_equal(tuple(scores), (theirs["ap"], theirs["ap50%"]), err_msg=name)


def test_ap_of_drawn_frames_equals_cityscapesscripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(12):
        frames = {}
        for number in range(seed, seed + 3):
            instance_map = draw_instance_map(number)
            if seed % 4 == 0:
                instance_map[instance_map // 1000 == 26] = 7
            frames[name_of(number)] = (
                instance_map,
                list(perturb(instance_map, seed=number, reach=2)),
            )
        truth, found = write(frames, tmp_path / str(seed))
        metrics = evaluate_cityscapes(str(truth), str(found))
        assert_equal(metrics, run_cityscapesscripts(truth, found, monkeypatch))
        if seed % 4 == 0:
            # A class without objects is NaN, and not in the mean.
            assert math.isnan(metrics.mask_by_class["car"].ap)
        assert metrics.mask.ap > 0.02

        counted = [count_frame(*frames[name]) for name in frames]
        assert cityscapes_metrics(counted[::-1]).mask == metrics.mask


def test_boundary_ap_of_drawn_frames_equals_boundary_iou_api() -> None:
    counted = []
    for seed in range(16):
        instance_map = draw_instance_map(seed)
        found = perturb(instance_map, seed=seed, reach=2)
        counted.append(count_frame(instance_map, found, dilation_ratio=0.03))
    boundary = cityscapes_metrics(counted, dilation_ratio=0.03)
    # From boundary-iou-api (37d2558) for these masks.
    assert tuple(boundary.boundary) == (0.19789945280191684, 0.31482643457966797)
    assert boundary.boundary_by_class["train"] == (0.4162185511856564, 0.5613613360323887)
    assert boundary.boundary_by_class["person"] == (0.11037398150143249, 0.12480547774665422)


def test_mask_mostly_on_void_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ap50 = []
    for rows_of_void in (40, 41):
        instance_map = one_car()
        instance_map[:rows_of_void] = 0
        # Half of its 40 rows, and one more.
        on_void = FoundMask(26, 0.9, square(20, 100, 40))
        right = FoundMask(26, 0.5, square(50, 50, 200))
        truth, found = write(
            {name_of(0): (instance_map, [on_void, right])}, tmp_path / f"{len(ap50)}"
        )
        half_void = evaluate_cityscapes(str(truth), str(found))
        assert_equal(half_void, run_cityscapesscripts(truth, found, monkeypatch))
        ap50.append(half_void.mask.ap50)
    assert ap50 == [0.25, 1]


def test_ap_of_real_frames_equals_cityscapesscripts_and_boundary_iou_api(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((real_data / "cityscapes_mini/gtFine/val").rglob(f"*{TRUTH_SUFFIX}"))[:2]
    frames = {}
    for seed, path in enumerate(files):
        instance_map = np.asarray(Image.open(path))
        masks = list(perturb(instance_map, seed=seed, reach=9))
        frames[path.name.removesuffix(TRUTH_SUFFIX)] = instance_map, masks
    truth, found = write(frames, tmp_path)
    metrics = evaluate_cityscapes(str(truth), str(found))
    assert_equal(metrics, run_cityscapesscripts(truth, found, monkeypatch))
    # From boundary-iou-api (37d2558) for these masks.
    assert tuple(metrics.boundary) == (0.0528681917871384, 0.11006656929827327)
    assert metrics.boundary_by_class["car"] == (0.0927227671485536, 0.1381829438597597)


def square(y: int, x: int, side: int) -> np.ndarray:
    mask = np.zeros((300, 300), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def one_car() -> np.ndarray:
    instance_map = np.full((300, 300), 7, np.uint16)
    instance_map[square(50, 50, 200)] = 26000
    return instance_map


def measure(instance_map: np.ndarray, *found: FoundMask, dilation_ratio: float = 0.005) -> Any:
    frame = count_frame(instance_map, found, dilation_ratio=dilation_ratio)
    return cityscapes_metrics([frame], dilation_ratio=dilation_ratio)


def test_boundary_ap_compares_outlines() -> None:
    assert tuple(measure(one_car(), FoundMask(26, 0.5, square(50, 50, 200))).boundary) == (1, 1)
    shifted = FoundMask(26, 0.5, square(53, 53, 200))
    narrow = measure(one_car(), shifted)
    assert narrow.mask.ap == pytest.approx(0.9)
    # The band is 2 px wide, the shift 3 px.
    assert narrow.boundary.ap50 == 0
    assert measure(one_car(), shifted, dilation_ratio=0.05).boundary.ap50 == 1


def test_band_at_corners_and_image_border() -> None:
    mask = np.ones((9, 9), bool)
    assert mask_to_boundary(mask, width_px=2).sum() == 81 - 25
    mask[4, 4] = False
    assert mask_to_boundary(mask, width_px=1).sum() == 32 + 8


def test_decode_masks() -> None:
    mask = square(60, 50, 200)
    packed = mask_api.encode(np.asfortranarray(mask.view(np.uint8)))
    rows = decode_masks([{"category_id": 26, "score": 0.5, "segmentation": packed}])
    expected = measure(one_car(), FoundMask(26, 0.5, mask))
    assert measure(one_car(), *rows) == expected
    assert 0 < expected.mask.ap < 1


def test_wrong_size_and_unknown_ids_raise() -> None:
    with pytest.raises(DatasetError, match=r"mask of \(9, 9\) pixels on a frame of \(300, 300\)"):
        measure(one_car(), FoundMask(26, 0.5, np.ones((9, 9), bool)))
    with pytest.raises(DatasetError, match=r"\[34, 7000, 65535\]"):
        count_frame(np.array([[34, 7000, 65535, 26]], np.uint16), [])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    found = [FoundMask(26, 0.5, square(50, 50, 200))]
    return write({name_of(n): (one_car(), found) for n in range(6)}, tmp_path)


def catch_error(truth: Path, found: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        evaluate_cityscapes(str(truth), str(found))
    return str(caught.value)


def test_all_problems_of_a_submission(folders: tuple[Path, Path]) -> None:
    truth, found = folders
    whole = Image.open(found / f"masks/{name_of(3)}_0.png")
    whole.resize((100, 100)).save(found / "small.png")
    whole.convert("RGB").save(found / "color.png")
    data = (found / f"masks/{name_of(3)}_0.png").read_bytes()
    (found / "cut.png").write_bytes(data[: len(data) // 2])
    (found / f"{name_of(0)}_pred.txt").unlink()
    (found / f"{name_of(1)}_again.txt").write_text("")
    (found / f"{name_of(9)}.txt").write_text("")
    (found / "read me.txt").write_text("hello")
    (found / f"{name_of(3)}_pred.txt").write_text(
        "small.png 26 0.5\ncolor.png 26 0.5\ncut.png 26 0.5\nnone.png 26 0.5\n"
        "\n/etc/passwd 26 0.5\n../val/x.png 26 0.5\n"
    )
    (found / f"{name_of(4)}_pred.txt").write_text(
        "a.png 26\nb.png car 0.5\nc.png 26 nan\nd.png 99 0.5\ne.png 26.5 0.5\n"
        f"masks/{name_of(4)}_0.png 26 0.5\nmasks/../masks/{name_of(4)}_0.png 26 0.6\n"
    )
    text = catch_error(truth, found)
    for expected in (
        f"frame without detections (1)\n    {name_of(0)}\n",
        f"several files for one frame (1)\n    {name_of(1)}: {name_of(1)}_again.txt, ",
        f"frame not in the truth (1)\n    {name_of(9)}.txt\n",
        "no frame in the file name (1)\n    read me.txt\n",
        f"wrong mask size (1)\n    {name_of(3)}_pred.txt, line 1: 100 x 100, the frame",
        "unreadable image (3)\n"
        f"    {name_of(3)}_pred.txt, line 2: color.png: it has 3 color channels",
        "line 3: cut.png: ",
        "line 4: none.png: ",
        f"mask path outside the submission (2)\n    {name_of(3)}_pred.txt, line 6: '/etc/passwd'",
        f"malformed line (2)\n    {name_of(4)}_pred.txt, line 1: 'a.png 26'\n",
        "score is not finite (1)",
        "unknown class id (2)\n"
        f"    {name_of(4)}_pred.txt, line 4: 99\n    {name_of(4)}_pred.txt, line 5: 26.5\n",
        "mask used twice (1)",
    ):
        assert expected in text, expected
    assert text.startswith("11 kinds of problem")


def test_problems_of_the_truth(folders: tuple[Path, Path]) -> None:
    truth, found = folders
    files = sorted(truth.rglob("*.png"))
    Image.fromarray(np.full((300, 300), 26, np.uint8)).save(files[0])
    Image.fromarray(np.full((300, 300), 34001, np.uint16)).save(files[1])
    files[2].write_bytes(files[3].read_bytes()[:200])
    text = catch_error(truth, found)
    for expected in (
        f"instance map is not 16-bit (1)\n    {files[0].name}: uint8, values up",
        f"unknown instance id (1)\n    {files[1].name}: 34001",
        f"unreadable image (1)\n    {files[2].name}: ",
    ):
        assert expected in text, expected


def test_swapped_and_missing_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    truth, found = folders
    swapped = catch_error(found, truth)
    assert re.search(
        r"no ground truth in the folder.*\n +12 files, such as .*; none is \*_gtFine_", swapped
    )
    assert re.search(r"no submission in the folder.*\n +6 files, .*none is \*\.txt", swapped)
    assert swapped.count("swap the folders") == 2
    assert "it does not exist" in catch_error(tmp_path / "none", found)


def test_train_ids_instead_of_label_ids(folders: tuple[Path, Path]) -> None:
    truth, found = folders
    for path in found.glob("*.txt"):
        path.write_text(path.read_text().replace(" 26 ", " 13 "))
    assert "no class with instances (1)\n    all 6 masks have 13\n" in catch_error(truth, found)


def test_no_detections_give_ap_0(
    folders: tuple[Path, Path],
) -> None:
    truth, found = folders
    for path in found.glob("*.txt"):
        path.write_text("")
    none = evaluate_cityscapes(str(truth), str(found))
    assert none.mask.ap == 0
    assert none.notices == ("no detections: every AP is 0",)
