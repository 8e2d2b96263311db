"""A layout: how the checkpoints of another code name the parameters that our models have too."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

ColorOrder = Literal["rgb", "bgr"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """How the same parameter differs in value."""

    read: Callable[[Tensor], Tensor]
    """From theirs to ours."""
    write: Callable[[Tensor], Tensor]
    """From ours to theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The names of one code, as an explicit map: a name without a rule is none of ours."""

    title: str
    """What errors call it."""
    told_by: str
    """A name that its files hold, and no file of another layout."""
    their_name: Callable[[str], str | None]
    """Their name of one of our parameters; None where they have no such thing."""
    color_order: ColorOrder = "rgb"
    """Channels that the first convolution reads, where the user does not say it."""
    changes: Mapping[str, Change] = field(default_factory=dict)
    """By our module."""
    newest_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    """Brings a file of an older version to the names of `their_name`."""
    no_weights: Sequence[str] = ()
    """Names of theirs, up to a ".", that hold nothing which a detector uses."""


class Translated(NamedTuple):
    """A checkpoint in our names."""

    tensors: dict[str, Tensor]
    strangers: list[str]
    """Their names for which we have none."""


def translate(layout: Layout, tensors: Mapping[str, Tensor], *, own: Collection[str]) -> Translated:
    """Give the tensors of a checkpoint the names and the values that our model has.

    Args:
        layout: How they are named.
        tensors: By their names.
        own: All names of the model.
    """
    ours = {theirs: key for key in own if (theirs := layout.their_name(key)) is not None}
    result: dict[str, Tensor] = {}
    strangers = []
    for name, value in layout.newest_names(tensors).items():
        key = ours.get(name)
        if key is None:
            if not any(name == each or name.startswith(each + ".") for each in layout.no_weights):
                strangers.append(name)
            continue
        change = layout.changes.get(key.rpartition(".")[0])
        result[key] = change.read(value) if change else value
    return Translated(result, strangers)


def write(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of our model the names and the values that another code reads.

    Raises:
        ValueError: the model has parts that the layout has no names for; all are named.
    """
    result: dict[str, Tensor] = {}
    strangers = []
    for key, value in state.items():
        theirs = layout.their_name(key)
        if theirs is None:
            strangers.append(key)
            continue
        change = layout.changes.get(key.rpartition(".")[0])
        result[theirs] = (change.write(value) if change else value).clone()
    if strangers:
        raise ValueError(
            f"the model has {len(strangers)} tensors that {layout.title} has no names for: "
            f"{', '.join(strangers)}. Only a model with the same parts can be written so."
        )
    return result


def without_background_rows(count: int) -> Change:
    """Theirs begins with rows for the background, which ours does not have; written as zeros."""

    def write_zeros(ours: Tensor) -> Tensor:
        return torch.cat((ours.new_zeros(count, *ours.shape[1:]), ours))

    return Change(read=lambda theirs: theirs[count:], write=write_zeros)


BACKGROUND_LAST = Change(
    read=lambda theirs: theirs.roll(-1, dims=0), write=lambda ours: ours.roll(1, dims=0)
)
"""Theirs has the background as the first row, ours as the last."""
