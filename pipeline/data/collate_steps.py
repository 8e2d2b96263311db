"""Collate the rows of steps, with what samples of two steps exchange."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from pipeline.data import collate_semantic
from pipeline.data.batch import Batch
from pipeline.data.collate import collate, collate_samples
from pipeline.data.copy_paste import paste_objects
from pipeline.data.samples import make_samples
from pipeline.recipe import DataConfig


class CollateSteps:
    """Collates one step, or two steps that exchange objects.

    Args:
        data: the transforms.
        seed: of the recipe.
        images_per_microbatch: images per forward pass.
        with_masks: decode instance masks too, for targets from each RoI's own mask.
    """

    def __init__(
        self, data: DataConfig, *, seed: int, images_per_microbatch: int, with_masks: bool
    ) -> None:
        self._data = data
        self._seed = seed
        self._images_per_microbatch = images_per_microbatch
        self._with_masks = with_masks
        self._pin = torch.cuda.is_available()

    def __call__(self, steps: Sequence[pa.Table]) -> list[tuple[Batch, ...]]:
        """Collate the rows of steps to the microbatches of each.

        Args:
            steps: rows of one step, or of two with equally many rows.

        Raises:
            DatasetError: an image or map cannot be decoded, or its size differs from its row's.
        """
        if "label" not in steps[0].column_names and len(steps) == 2:
            batches = self._exchange_objects(steps)
        else:
            batches = [tuple(map(self._collate, self._cut(rows))) for rows in steps]
        if self._pin:
            return [tuple(batch.pin_memory() for batch in step) for step in batches]
        return batches

    def _cut(self, rows: pa.Table) -> list[pa.Table]:
        each = self._images_per_microbatch
        return [rows.slice(first, each) for first in range(0, len(rows), each)]

    def _collate(self, rows: pa.Table) -> Batch:
        if "label" in rows.column_names:
            return collate_semantic.collate(rows, self._data, seed=self._seed)
        return collate(rows, self._data, seed=self._seed, with_masks=self._with_masks)

    def _exchange_objects(self, steps: Sequence[pa.Table]) -> list[tuple[Batch, ...]]:
        """Paste objects of each sample into the one of the other step and the same lane."""
        rows = pa.concat_tables(steps)
        samples = make_samples(rows, self._data, seed=self._seed, with_masks=True)
        lanes = len(steps[0])
        partners = np.roll(np.arange(len(rows)), lanes)
        samples = paste_objects(
            samples,
            partners,
            probability=self._data.copy_paste,
            with_masks=self._with_masks,
        )
        batches, first = [], 0
        for step in steps:
            microbatches = []
            for part in self._cut(step):
                taken = samples.of_images(first, first + len(part))
                microbatches.append(
                    collate_samples(taken, part, self._data, with_masks=self._with_masks)
                )
                first += len(part)
            batches.append(tuple(microbatches))
        return batches
