"""Continue the categories of a weights file in a model with other ones.

Predictors have rows for each category, and PointRend's layers read a channel for each. Which ones
they are follows from two models that differ in their number of categories alone.

K categories of the model, S of the file
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_COUNTED_BY = (
    ("box_head.scores.bias", 1),
    ("box_head.stages.0.scores.bias", 1),
    ("head.decoder.logits.bias", 0),
)
"""Tensors that tell S, with their rows beside those of categories: the background's."""


class CategoryAxis(NamedTuple):
    """The layout of the categories along an axis of a tensor."""

    axis: int
    per_category: int
    others: int
    """Entries for no category: after all others in rows, before them in input channels."""

    def list_entries(self, categories: Sequence[int]) -> list[list[int]]:
        """List the indices of the others, then those of each category."""
        start = self.others if self.axis else 0
        first = 0 if self.axis else len(categories) * self.per_category
        return [
            list(range(first, first + self.others)),
            *(
                list(range(start + k * self.per_category, start + (k + 1) * self.per_category))
                for k in categories
            ),
        ]


CategoryAxes = Mapping[str, Sequence[CategoryAxis]]
"""By name of the tensor."""


def find_category_axes(
    state: Mapping[str, Tensor], larger: Mapping[str, Tensor], *, num_classes: int
) -> dict[str, list[CategoryAxis]]:
    """Find the axes that hold categories.

    Args:
        state: of the model.
        larger: of the same model with one category more.
        num_classes: K.
    """
    axes: dict[str, list[CategoryAxis]] = {}
    for name, value in state.items():
        for axis, (size, more) in enumerate(zip(value.shape, larger[name].shape, strict=True)):
            if more > size:
                others = size - (more - size) * num_classes
                axes.setdefault(name, []).append(CategoryAxis(axis, more - size, others))
    return axes


def take_categories(
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    axes: CategoryAxes,
    categories: Sequence[int],
) -> dict[str, Tensor]:
    """Make tensors for a model with other categories.

    Args:
        tensors: the file's, in our names.
        own: the model's, which start at random.
        axes: from `find_category_axes`.
        categories: of length K, the file's category that each continues; -1 keeps the model's own.

    Raises:
        ValueError: the file has fewer categories, or does not tell how many.
    """
    count = _count_categories(tensors)
    if count is None or max(categories) >= count:
        raise ValueError(
            f"weights_categories: asks for category {max(categories)}, counted from 0, and the "
            f"file has {'an unknown number of' if count is None else count}"
        )
    result = dict(tensors)
    for name, of_tensor in axes.items():
        if name in tensors:
            result[name] = _take(tensors[name], own[name], of_tensor, categories, count=count)
    return result


def _count_categories(tensors: Mapping[str, Tensor]) -> int | None:
    return next(
        (len(tensors[name]) - others for name, others in _COUNTED_BY if name in tensors), None
    )


def _take(
    theirs: Tensor,
    ours: Tensor,
    axes: Sequence[CategoryAxis],
    categories: Sequence[int],
    *,
    count: int,
) -> Tensor:
    sizes = list(theirs.shape)
    to, source = ([torch.arange(size) for size in each.shape] for each in (ours, theirs))
    for how in axes:
        sizes[how.axis] += how.per_category * (len(categories) - count)
        own_entries = how.list_entries(range(len(categories)))
        their_entries = how.list_entries(range(count))
        pairs = [(0, 0), *((1 + k, 1 + each) for k, each in enumerate(categories) if each >= 0)]
        to[how.axis] = _join([own_entries[k] for k, _ in pairs])
        source[how.axis] = _join([their_entries[k] for _, k in pairs])
    if tuple(sizes) != tuple(ours.shape):
        return theirs  # does not fit, which the caller reports
    result = ours.clone()
    result[torch.meshgrid(*to, indexing="ij")] = theirs[torch.meshgrid(*source, indexing="ij")]
    return result


def _join(entries: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([i for each in entries for i in each], dtype=torch.int64)
