"""Feed training with label maps: ours beside a DataLoader that dilates and erodes each class.

Both decode photos of 2048 x 1024, crop and resize them to 832 x 832 and flip them at random. The
DataLoader's worker also makes the bands of each class in the crop with cv2 and a kernel of 15, as
DecoupleSegNets and similar code do. Ours reads them from the stored field in the step, so that is
timed too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from bsm.semantic.field import SemanticTargets, targets_from_semantic_field
from pipeline.bench.our_feed import feed_batches, make_data_config
from pipeline.bench.peers import cache_folder
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import time_in_turn, timed
from pipeline.data.cityscapes_classes import CLASSES
from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import CityscapesSemanticIngest
from pipeline.recipe import DataConfig

_BATCH, _CROP_PX, _KERNEL, _CLASSES, _VOID = 2, 832, 15, 19, 255


def bench_semantic_feed(
    *, photos: str, split: str, images: int, rounds: int, print_line: Callable[[str], None]
) -> Result:
    """Time both on a split of Cityscapes."""
    cv2.setNumThreads(1)
    shards = cache_folder() / f"shards-cityscapes-{split}"
    ingest_dataset(
        CityscapesSemanticIngest(
            root=photos, split=split, out=str(shards), on_bad="drop", workers=0
        )
    )
    data = make_data_config(shards, crop_px=_CROP_PX)

    def feed(*, with_targets: bool) -> None:
        for batch in feed_batches(data, images=images, batch=_BATCH):
            if with_targets and isinstance(batch.targets, SemanticTargets):
                targets_from_semantic_field(
                    batch.targets,
                    num_classes=_CLASSES,
                    kernel_size=_KERNEL,
                    unite_boundary=True,
                )

    dataset = _Frames(Path(photos), split, images)

    def feed_frames() -> None:
        loader: DataLoader[Any] = DataLoader(dataset, batch_size=_BATCH, num_workers=1)
        for _ in loader:
            pass

    cases = {
        "DataLoader, class by class": timed(feed_frames),
        "ours": timed(lambda: feed(with_targets=False)),
        "ours, and targets of the step": timed(lambda: feed(with_targets=True)),
    }
    runs = time_in_turn(cases, rounds=rounds, print_line=print_line)
    bars = [
        Bar(over="DataLoader, class by class", under="ours", at_least=3),
        Bar(over="DataLoader, class by class", under="ours, and targets of the step"),
    ]
    return report(runs, bars, rates=dict.fromkeys(cases, (images, "images")), images=images)


class _Frames(Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """Crops of frames with the label and the bands of each class."""

    def __init__(self, root: Path, split: str, images: int) -> None:
        photos = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        self._photos = [photos[index % len(photos)] for index in range(images)]
        self._train_ids = np.full(256, _VOID, np.uint8)
        for each in CLASSES:
            self._train_ids[each.label_id] = each.train_id

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        path = self._photos[index]
        g = np.random.default_rng(index)
        pixels: Any = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        name = str(path).replace("leftImg8bit", "gtFine").removesuffix("_gtFine.png")
        ids: Any = cv2.imread(f"{name}_gtFine_labelIds.png", cv2.IMREAD_UNCHANGED)
        label = self._train_ids[ids]
        side = round(_CROP_PX / g.uniform(*DataConfig().scale_range))
        height, width = label.shape
        top, left = (int(g.integers(0, max(1, each - side))) for each in (height, width))
        crop = slice(top, top + side), slice(left, left + side)
        size = (_CROP_PX, _CROP_PX)
        image: Any = cv2.resize(pixels[crop], size, interpolation=cv2.INTER_LINEAR)
        label = np.asarray(cv2.resize(label[crop], size, interpolation=cv2.INTER_NEAREST_EXACT))
        if g.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        bands = _make_bands(np.ascontiguousarray(label))
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(image), torch.from_numpy(label.copy()), torch.from_numpy(bands)


def _make_bands(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return contraction, expansion and boundary of each class, (classes, 3, H, W)."""
    kernel, small = (np.ones((side, side), np.uint8) for side in (_KERNEL, 3))
    bands = np.zeros((_CLASSES, 3, *label.shape), np.uint8)
    for index in np.unique(label):
        if index == _VOID:
            continue
        mask = (label == index).astype(np.uint8)
        boundary = mask - np.asarray(cv2.erode(mask, small))
        bands[index, 0] = (np.asarray(cv2.dilate(mask, kernel)) - mask) | boundary
        bands[index, 1] = (mask - np.asarray(cv2.erode(mask, kernel))) | boundary
        bands[index, 2] = boundary
    return bands
