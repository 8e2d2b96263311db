"""The refiner, beside the detector that could have found its masks."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bsm.backbone import extract_features
from bsm.configs.refine import RefinerConfig
from bsm.refine.refine import refine_masks
from bsm.refine.refiner import Refiner
from pipeline.bench.detectors import SIZE_HW, make_detector_case
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import Case, time_in_turn, timed

_RADII_PX = (7, 270)
"""Log-uniform, as of COCO's objects in a photo of this size."""


class _BackboneAlone(Refiner):
    """Computes the features of the crops, and returns the given masks."""

    def predict(self, pixels: Tensor, masks: Tensor) -> Tensor:
        x = (pixels - self.pixel_mean) / self.pixel_std
        extract_features(self.trunk, x.contiguous(memory_format=torch.channels_last))
        return masks - 0.5


def bench_refiner(
    *,
    sharp: RefinerConfig,
    fast: RefinerConfig,
    masks: int,
    rounds: int,
    print_line: Callable[[str], None],
) -> Result:
    """Time the masks of one photo: as our two recipes refine them, and variants of these.

    Args:
        sharp: the recipe; no weights are read.
        fast: the recipe that has a bar.
        masks: of the photo.
        rounds: that count.
        print_line: called with a line after each round.
    """
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, *SIZE_HW), dtype=torch.uint8)
    given = _draw_disks(masks)
    sharp, fast = (
        replace(each, backbone=replace(each.backbone, weights="")) for each in (sharp, fast)
    )
    models = {
        "fast refiner": Refiner(fast),
        "its backbone alone": _BackboneAlone(fast),
        "the same with the guided squeeze": Refiner(replace(fast, squeeze="guided")),
        "refiner": Refiner(sharp),
        "the same without the squeeze": Refiner(replace(sharp, squeeze="none")),
        "the same with crops of 128 px": Refiner(replace(sharp, crop_px=(128,))),
    }

    def make(model: Refiner) -> Case:
        model.eval()
        return timed(lambda: refine_masks(model, image, given))

    cases = {"detector": make_detector_case(masks)}
    cases |= {name: make(model) for name, model in models.items()}
    runs = time_in_turn(cases, rounds=rounds, warm_ups=0, print_line=print_line)
    limits = {"fast refiner": 0.35}
    bars = [Bar(over=name, under="detector", at_most=limits.get(name)) for name in models]
    return report(runs, bars, size_hw=SIZE_HW, masks=masks)


def _draw_disks(count: int) -> Tensor:
    """Draw (count, H, W) masks anywhere in the photo."""
    height, width = SIZE_HW
    low, high = _RADII_PX
    radius = low * (high / low) ** torch.rand(count, 1, 1)
    x, y = torch.rand(2, count, 1, 1)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    distance = torch.hypot(rows - y * height, columns - x * width)
    disks: Tensor = distance < radius
    return disks
