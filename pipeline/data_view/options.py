"""Options of the page of a data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bsm.configs.rules import KernelSize, NonNegativeInt, PositiveInt
from pipeline.data.manifest import Manifest
from pipeline.errors import RecipeError
from pipeline.recipe import RecipePart
from pipeline.text import format_names, suggest

Size: TypeAlias = Literal["small", "medium", "large"]

SIZES: tuple[Size, ...] = ("small", "medium", "large")

_SMALL_PX, _LARGE_PX = 32**2, 96**2
"""COCO's limits of the area."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewOptions(RecipePart):
    """The photos, masks and targets that the page of a data set shows."""

    category: tuple[str, ...] = ()
    """Categories to show; by default all."""
    size: tuple[Size, ...] = SIZES
    """Sizes of the objects to show: small is below 32 x 32 pixels, large from 96 x 96."""
    photos: PositiveInt = 12
    """Number of photos."""
    objects: PositiveInt = 60
    """Largest number of objects in all photos."""
    seed: NonNegativeInt = 0
    """Another number shows other photos."""
    kernel_size: KernelSize | None = None
    """Side of the dilation and erosion kernel, odd, in RoI cells, or in pixels of label maps; by
    default the paper's, 5 and 15."""
    source: Literal["field", "roi"] = "field"
    """Source of an object's targets, as mask_head.targets.source of a recipe: the squeeze field, or
    morphology on its mask."""
    side: PositiveInt = 28
    """Cells on a side of an object's targets."""

    def find_problems(self) -> Iterator[tuple[str, str]]:
        """Check that there is something to show."""
        if not self.size:
            yield "size", f"needs at least one of {', '.join(SIZES)}"


def find_categories(options: ViewOptions, manifest: Manifest) -> set[int]:
    """Return the category indices to show.

    Raises:
        RecipeError: the data set has no category of a name.
    """
    index = {each.name: each.category_index for each in manifest.categories}
    unknown = [name for name in options.category if name not in index]
    if unknown:
        hints = ", ".join(f"{name!r}{suggest(name, index)}" for name in unknown)
        raise RecipeError(
            f"--category: the data set has no {hints}. It has: {format_names(list(index))}"
        )
    return {index[name] for name in options.category} or set(index.values())


def name_size(area_px: float) -> Size:
    """Name the size of an object by its area."""
    if area_px < _SMALL_PX:
        return "small"
    return "medium" if area_px < _LARGE_PX else "large"
