"""Scores of semantic models equal those of their saved label maps, on any number of workers."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.data.batch import Batch
from pipeline.data.collate_semantic import collate_images
from pipeline.errors import DatasetError, RecipeError
from pipeline.evaluation.chunks import run_chunks
from pipeline.evaluation.evaluate import evaluate_model
from pipeline.evaluation.label_files import LabelFolders, evaluate_boundary_f, evaluate_miou
from pipeline.evaluation.label_maps import label_batch
from pipeline.evaluation.label_planes import window_starts
from pipeline.evaluation.semantic import make_semantic_task
from pipeline.evaluation.split_reader import plan_chunks
from pipeline.recipe import DataConfig, EvaluationConfig
from tests.pipeline.evaluation.tiny_maps_split import (
    SIZE_HW,
    VALUES,
    BrightnessModel,
    draw_labels,
    write_maps_split,
)

DATA = DataConfig()
EVALUATION = EvaluationConfig()


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_maps_split(tmp_path_factory.mktemp("maps"))


def save_train_ids(folder: Path, files: dict[str, np.ndarray]) -> str:
    folder.mkdir()
    for name, label in files.items():
        Image.fromarray(label).save(folder / name)
    return str(folder)


def test_exact_model_reaches_full_scores(split: str, tmp_path: Path) -> None:
    found = evaluate_model(
        BrightnessModel(), split, DATA, EVALUATION, out_uri=str(tmp_path / "run")
    )
    assert found.metrics["miou"] == 1
    assert [found.metrics[f"boundary_f_{r}px"] for r in (3, 5, 9, 12)] == [1, 1, 1, 1]
    assert found.metrics["images"] == 11
    # 11 images, one per forward pass, minus the warm-up passes.
    assert found.metrics["inference_ms_p99"] >= found.metrics["inference_ms_p50"] > 0
    assert "8 images, forward pass only" in found.text
    assert found.per_category["tree"] == {"iou": 1} | {
        f"boundary_f_{r}px": 1 for r in (3, 5, 9, 12)
    }
    folder = Path(found.files["label_maps"])
    assert folder == tmp_path / "run" / "label_maps"
    assert len(list(folder.iterdir())) == 11
    values = np.array(VALUES)
    for number in range(11):
        label, saved = draw_labels(number), np.asarray(Image.open(folder / f"p{number}.png"))
        known = label != 255
        np.testing.assert_array_equal(saved[known], values[label[known]])


@pytest.mark.parametrize("absent", ["one", "skip"])
def test_scores_equal_those_from_files(split: str, tmp_path: Path, absent: str) -> None:
    evaluation = replace(EVALUATION, radii_px=(1, 3), absent=absent)
    out = str(tmp_path / "run")
    found = evaluate_model(BrightnessModel(shift_px=2), split, DATA, evaluation, out_uri=out)
    index = np.zeros(256, np.uint8)
    index[list(VALUES)] = range(3)
    maps = {p.name: index[np.asarray(Image.open(p))] for p in Path(out, "label_maps").iterdir()}
    folders = LabelFolders(
        truth=save_train_ids(tmp_path / "truth", {f"p{k}.png": draw_labels(k) for k in range(11)}),
        detections=save_train_ids(tmp_path / "maps", maps),
        classes="3",
    )
    iou, f = evaluate_miou(folders), evaluate_boundary_f(folders, radii_px=(1, 3), absent=absent)
    assert found.metrics["miou"] == iou.miou < 1
    assert (found.metrics["boundary_f_1px"], found.metrics["boundary_f_3px"]) == f.f
    assert found.metrics["boundary_f_1px"] < found.metrics["boundary_f_3px"]
    assert [each["iou"] for each in found.per_category.values()] == list(iou.per_class.values())
    assert f"(absent={absent})" in found.text


def test_order_of_chunks_does_not_change_scores(split: str) -> None:
    whole = evaluate_model(BrightnessModel(shift_px=1), split, DATA, EVALUATION)
    chunks = plan_chunks(split, max_images=None, images_per_chunk=2)
    task = make_semantic_task(split, DATA, EVALUATION, out_uri=None)
    first, second = (
        run_chunks(BrightnessModel(shift_px=1), share, task.make_predictor)
        for share in (chunks[1::2], chunks[0::2])
    )
    joined = task.compute_metrics([*first, *second]).metrics
    assert joined == {name: whole.metrics[name] for name in joined}


def test_max_images(split: str) -> None:
    found = evaluate_model(BrightnessModel(), split, DATA, replace(EVALUATION, max_images=2))
    assert found.metrics["images"] == 2
    assert "inference_ms_p50" not in found.metrics
    assert "inference time: not measured" in found.text


def test_old_label_maps_are_deleted(split: str, tmp_path: Path) -> None:
    for most in (3, 2):
        evaluation = replace(EVALUATION, max_images=most)
        evaluate_model(BrightnessModel(), split, DATA, evaluation, out_uri=str(tmp_path))
        assert len(list((tmp_path / "label_maps").iterdir())) == most


def test_model_with_unknown_classes_raises(split: str) -> None:
    model = BrightnessModel(num_classes=5, offset=2)
    with pytest.raises(DatasetError, match=r"predicted class 4, .*3 classes.*num-classes 3"):
        evaluate_model(model, split, DATA, EVALUATION)


def batch_of(number: int, data: DataConfig = DATA) -> Batch:
    image = np.stack(
        [np.where(draw_labels(number) == 255, 0, draw_labels(number) * 60)] * 3, axis=2
    )
    return collate_images([image.astype(np.uint8)], data)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.8])
@pytest.mark.parametrize("window_px", [32, 47, 64, 200])
def test_sliding_window_covers_the_image(window_px: int, overlap: float) -> None:
    evaluation = replace(EVALUATION, window_px=window_px, window_overlap=overlap)
    model = BrightnessModel()
    (found,) = label_batch(model, batch_of(0), evaluation)
    (whole,) = label_batch(BrightnessModel(), batch_of(0), EVALUATION)
    np.testing.assert_array_equal(found, whole)
    assert found.shape == SIZE_HW
    assert model.largest_px <= window_px


@pytest.mark.parametrize(
    ("length", "side", "overlap", "starts"),
    [
        (96, 96, 0.25, [0]),
        (97, 96, 0.25, [0, 1]),
        (2048, 1024, 0.25, [0, 512, 1024]),
        (100, 50, 0.0, [0, 50]),
        (10, 4, 0.99, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_window_starts(length: int, side: int, overlap: float, starts: list[int]) -> None:
    assert window_starts(length, side, overlap=overlap) == starts


class RampModel(nn.Module):
    """Its logits of the first class rise to the right and down in each window."""

    def forward(self, images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        first = torch.arange(height)[:, None] + 2.0 * torch.arange(width)
        one = torch.stack([first, torch.full_like(first, 50.0)])
        return one[None].expand(len(images), -1, -1, -1)


def test_overlapping_logits_are_averaged() -> None:
    evaluation = replace(EVALUATION, window_px=32, window_overlap=0.4)
    (found,) = label_batch(RampModel(), batch_of(0), evaluation)
    tops = window_starts(48, 32, overlap=0.4)
    lefts = window_starts(96, 32, overlap=0.4)
    assert (len(tops), len(lefts)) == (2, 5)
    total, count = torch.zeros(2, *SIZE_HW), torch.zeros(SIZE_HW)
    for top in tops:
        for left in lefts:
            logits = RampModel()(torch.zeros(1, 3, 32, 32), torch.tensor([[32, 32]]))[0]
            total[:, top : top + 32, left : left + 32] += logits
            count[top : top + 32, left : left + 32] += 1
    assert count.max() == 4
    np.testing.assert_array_equal(found, (total / count).argmax(0))


def test_label_map_has_the_original_size(split: str) -> None:
    data = replace(DATA, test_size_hw=(96, 192))
    (found,) = label_batch(BrightnessModel(), batch_of(0, data), EVALUATION)
    assert found.shape == SIZE_HW
    label = draw_labels(0)
    inner = np.zeros(SIZE_HW, bool)
    # Skip the borders of the blocks, where resizing mixes brightness.
    inner[2::8, 3::8] = True
    inner &= label != 255
    np.testing.assert_array_equal(found[inner], label[inner])
    assert evaluate_model(BrightnessModel(), split, data, EVALUATION).metrics["miou"] > 0.8
    with pytest.raises(RecipeError, match=r"--evaluation\.window-px None"):
        label_batch(BrightnessModel(), batch_of(0, data), replace(EVALUATION, window_px=32))


def test_logits_are_resized_before_argmax() -> None:
    # With nearest labels, the border would be a multiple of 10.
    class TwoClassModel(nn.Module):
        def forward(self, images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            left = torch.linspace(1.0, -3.05, images.shape[-1]).expand(images.shape[-2:])
            return torch.stack([left, -left])[None]

    data = replace(DATA, test_size_hw=(32, 32))
    batch = replace(batch_of(0, data), original_sizes_hw=torch.tensor([[320, 320]]))
    (found,) = label_batch(TwoClassModel(), batch, EVALUATION)
    border = int((found[0] == 1).argmax())
    assert border == math.ceil((31 / 4.05 + 0.5) * 10 - 0.5)
    assert border % 10 != 0
