"""Layouts: map the parameter names and values of another code's checkpoints to ours, and back."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

ColorOrder = Literal["rgb", "bgr"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """Convert the values of a parameter between their code and ours."""

    read: Callable[[Tensor], Tensor]
    """From theirs to ours."""
    write: Callable[[Tensor], Tensor]
    """From ours to theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The names of another code, as an explicit map."""

    title: str
    """Its name in errors."""
    signature_key: str
    """A name that identifies its files: no other layout has it."""
    to_external_name: Callable[[str], str | None]
    """Translates the name of one of our parameters to theirs; None where they have none."""
    color_order: ColorOrder = "rgb"
    """Default color order of the first convolution."""
    conversions: Mapping[str, Conversion] = field(default_factory=dict)
    """By our module."""
    upgrade_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    """Renames the tensors of an older version's file to the current names."""
    ignored_prefixes: Sequence[str] = ()
    """Their names, up to a ".", that a detector does not use."""


class TranslatedState(NamedTuple):
    """A checkpoint in our names."""

    tensors: dict[str, Tensor]
    unexpected_keys: list[str]
    """Their names without a counterpart in our model."""


def translate(
    layout: Layout, tensors: Mapping[str, Tensor], *, own: Collection[str]
) -> TranslatedState:
    """Translate a checkpoint's names and values to those of our model.

    Args:
        layout: of the checkpoint.
        tensors: by their names.
        own: all names of our model.
    """
    ours = {theirs: key for key in own if (theirs := layout.to_external_name(key)) is not None}
    result: dict[str, Tensor] = {}
    unexpected_keys = []
    for name, value in layout.upgrade_names(tensors).items():
        key = ours.get(name)
        if key is None:
            if not any(name == p or name.startswith(p + ".") for p in layout.ignored_prefixes):
                unexpected_keys.append(name)
            continue
        conversion = layout.conversions.get(key.rpartition(".")[0])
        result[key] = conversion.read(value) if conversion else value
    return TranslatedState(result, unexpected_keys)


def export_tensors(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate our model's names and values to those of another code.

    Raises:
        ValueError: the model has tensors that the layout has no names for; all are listed.
    """
    result: dict[str, Tensor] = {}
    unexpected_keys = []
    for key, value in state.items():
        theirs = layout.to_external_name(key)
        if theirs is None:
            unexpected_keys.append(key)
            continue
        conversion = layout.conversions.get(key.rpartition(".")[0])
        result[theirs] = (conversion.write(value) if conversion else value).clone()
    if unexpected_keys:
        raise ValueError(
            f"the model has {len(unexpected_keys)} tensors that {layout.title} has no names for: "
            f"{', '.join(unexpected_keys)}. Only a model with the same parts can be exported."
        )
    return result


def drop_background_rows(count: int) -> Conversion:
    """Drop their leading rows for the background on reading; write them as zeros."""

    def write_zeros(ours: Tensor) -> Tensor:
        return torch.cat((ours.new_zeros(count, *ours.shape[1:]), ours))

    return Conversion(read=lambda theirs: theirs[count:], write=write_zeros)


BACKGROUND_LAST = Conversion(
    read=lambda theirs: theirs.roll(-1, dims=0), write=lambda ours: ours.roll(1, dims=0)
)
"""Their first row is the background, ours is the last."""
