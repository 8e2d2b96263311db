"""The images of one forward pass with their targets, whatever kind of model trains on them.

N images, H, W padded input size
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from bsm.instance.tensors import Targets
from bsm.semantic.field import SemanticTargets
from pipeline.data.augment import Pixels
from pipeline.data.seeds import sample_seeds

PAD_TO_MULTIPLE_PX = 32
"""The stride of the pyramid's coarsest level that features come from (detectron2)."""

AnyTargets: TypeAlias = Targets | SemanticTargets

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """The images of one forward pass and their targets."""

    images: Tensor
    """(N, 3, H, W) uint8 RGB, padded below and to the right with zeros."""
    image_sizes_hw: Tensor
    """(N, 2) int64: size of each image without its padding."""
    targets: AnyTargets
    """Made for evaluation, they hold nothing: no target slot, or maps of no pixel."""
    image_id: Tensor
    """(N,) int64; stays on the CPU."""
    original_sizes_hw: Tensor
    """(N, 2) int64: size of each image as stored; stays on the CPU."""
    lanes: Tensor
    """(N,) int64: columns of the global batch; stays on the CPU."""
    colors: Tensor | None = None
    """(N, 4) float32: by how much to change the colors of each image (augment.drawn_colors)."""

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> "Batch":
        """Move what a model needs to a device; what only people read stays on the CPU."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self) -> "Batch":
        """Put what will go to a GPU into page-locked memory, so that it goes while work goes on."""
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Any) -> "Batch":  # noqa: ANN401  a function of a tensor
        return replace(
            self,
            images=change(self.images),
            image_sizes_hw=change(self.image_sizes_hw),
            targets=_each(self.targets, change),
            colors=None if self.colors is None else change(self.colors),
        )


def padded(images: Sequence[Pixels], *, size_hw: tuple[int, int] | None = None) -> Tensor:
    """Join (h, w, 3) images to (N, 3, H, W), each at the top left, the rest zeros.

    Args:
        images: RGB.
        size_hw: H and W; without, the smallest that hold all images and are multiples of 32.
    """
    sizes = sizes_of(images).numpy()
    height, width = size_hw or -(-sizes.max(axis=0) // PAD_TO_MULTIPLE_PX) * PAD_TO_MULTIPLE_PX
    joined = np.zeros((len(images), 3, height, width), dtype=np.uint8)
    for row, image in enumerate(images):
        joined[row, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return torch.from_numpy(joined)


def sizes_of(images: Sequence[Pixels]) -> Tensor:
    """Give the sizes (N, 2) of images."""
    return torch.tensor([image.shape[:2] for image in images], dtype=torch.int64).reshape(-1, 2)


def seeds_of(rows: pa.Table, seed: int) -> Ints:
    """Give the seed of each row's sample, from the plan's columns.

    Args:
        rows: with `epoch`, and with `repeat` where an image may come several times an epoch.
        seed: the recipe's.
    """
    repeats = rows["repeat"].to_numpy() if "repeat" in rows.column_names else 0
    epochs, image_ids = rows["epoch"].to_numpy(), rows["image_id"].to_numpy()
    return sample_seeds(seed, epochs=epochs, image_ids=image_ids, repeats=repeats)


def row_sizes(rows: pa.Table) -> list[tuple[int, int]]:
    """Give the height and width that rows say their images have."""
    return list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))


def original_sizes(rows: pa.Table) -> Tensor:
    """Give the same as (N, 2) int64."""
    return torch.tensor(row_sizes(rows), dtype=torch.int64).reshape(-1, 2)


def int64(rows: pa.Table, column: str) -> Tensor:
    """Give a column of whole numbers."""
    return torch.from_numpy(rows[column].to_numpy().astype(np.int64))


def _each(targets: AnyTargets, change: Any) -> AnyTargets:  # noqa: ANN401
    changed: dict[str, Any] = {
        name: None if tensor is None else change(tensor)
        for name, tensor in targets._asdict().items()
    }
    return targets._replace(**changed)
