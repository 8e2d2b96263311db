"""Detections have the size of the original image, and memory does not grow with it."""

import subprocess
import sys

import pytest
import torch
from pycocotools import mask as mask_api
from torch import Tensor, nn

from bsm.instance.tensors import Detections
from pipeline.data.batch import Batch
from pipeline.evaluation.infer import detect, to_results


class FixedBoxes(nn.Module):
    """Returns the same boxes for every image, with full masks."""

    def __init__(self, boxes_xyxy: list[list[float]], valid: list[bool]) -> None:
        super().__init__()
        self.boxes = torch.tensor(boxes_xyxy)[None]
        self.valid = torch.tensor(valid)[None]

    def forward(self, images: Tensor, image_sizes_hw: Tensor) -> Detections:
        N, D = len(images), self.valid.shape[1]
        return Detections(
            self.boxes.expand(N, -1, -1),
            torch.linspace(0.9, 0.1, D).expand(N, -1),
            torch.arange(D).expand(N, -1),
            self.valid.expand(N, -1),
            torch.ones(N, D, 28, 28),
        )


def batch_of(input_hw: list[tuple[int, int]], original_hw: list[tuple[int, int]]) -> Batch:
    N = len(input_hw)
    return Batch(
        images=torch.zeros(N, 3, 64, 96, dtype=torch.uint8),
        image_sizes_hw=torch.tensor(input_hw),
        targets=None,
        image_id=torch.arange(N) + 40,
        original_sizes_hw=torch.tensor(original_hw),
        lanes=torch.arange(N),
    )


def test_boxes_and_masks_at_original_size() -> None:
    # Each image has its own scale factors along x and y.
    batch = batch_of([(50, 60), (20, 60)], [(100, 180), (20, 30)])
    model = FixedBoxes([[10, 10, 30, 20], [0, 0, 9, 9]], [True, False])
    first, second = detect(model, batch, paste_bytes=2**20)

    (found,) = first
    assert found.image_id == 40
    assert found.category_index == 0
    assert found.score == pytest.approx(0.9)
    assert found.box_xyxy == pytest.approx((30, 20, 90, 40))
    mask = mask_api.decode({"size": [100, 180], "counts": found.rle_counts})
    assert mask.sum() == 60 * 20
    assert mask[20:40, 30:90].all()

    (other,) = second
    assert other.image_id == 41
    assert other.box_xyxy == pytest.approx((5, 10, 15, 20))
    assert other.size_hw == (20, 30)


def test_boxes_are_clipped_and_empty_boxes_dropped() -> None:
    batch = batch_of([(50, 60)], [(50, 60)])
    model = FixedBoxes([[-5, -5, 10, 10], [70, 10, 90, 20], [50, 40, 80, 70]], [True] * 3)
    (found,) = detect(model, batch, paste_bytes=2**20)
    assert [each.box_xyxy for each in found] == [(0, 0, 10, 10), (50, 40, 60, 50)]
    assert [each.category_index for each in found] == [0, 2]


def test_no_detections_and_training_mode_is_restored() -> None:
    model = FixedBoxes([[0, 0, 5, 5]], [False]).train()
    assert detect(model, batch_of([(50, 60)], [(50, 60)]), paste_bytes=1) == [[]]
    assert model.training


def test_to_results() -> None:
    (found,) = detect(
        FixedBoxes([[10, 10, 30, 20]], [True]), batch_of([(50, 60)], [(50, 60)]), paste_bytes=2**20
    )
    (row,) = to_results(found, {0: 90})
    assert row["image_id"] == 40
    assert row["category_id"] == 90
    assert row["bbox"] == [10, 10, 20, 10]
    assert row["segmentation"]["size"] == [50, 60]
    assert isinstance(row["segmentation"]["counts"], str)
    assert mask_api.area(row["segmentation"]) == 200


_LARGE_IMAGE = """
import resource, torch
from tests.pipeline.evaluation.test_detect import FixedBoxes, batch_of
from pipeline.evaluation.infer import detect

torch.set_num_threads(1)
boxes = [[(k * 7) % 60, (k * 3) % 40, (k * 7) % 60 + 15, (k * 3) % 40 + 12] for k in range(98)]
boxes += [[0, 0, 80, 60]] * 2
model = FixedBoxes([[float(x) for x in box] for box in boxes], [True] * 100)
warm = batch_of([(60, 80)], [(60, 80)])
detect(model, warm, paste_bytes=2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(found,) = detect(model, batch_of([(60, 80)], [(3000, 4000)]), paste_bytes=64 * 2**20)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(found), (after - before) // 1024)
"""


def test_memory_of_a_hundred_objects_at_12_megapixels() -> None:
    # Dense masks would take 1.2 GB as bool and four times as much as float32.
    done = subprocess.run(
        [sys.executable, "-c", _LARGE_IMAGE],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, grown_mib = map(int, done.stdout.split())
    assert count == 100
    assert grown_mib < 300
