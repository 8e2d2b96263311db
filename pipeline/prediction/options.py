"""Options of prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import RecipeError

Format = Literal["coco", "label-png", "yolo-seg", "overlay", "cutout"]

_OF_SEMANTIC: tuple[Format, ...] = ("label-png", "overlay")
_OF_VIDEO: tuple[Format, ...] = ("coco", "overlay")
_MIN_TILE_PX = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions:
    """Options of prediction, and the files to write."""

    format: tuple[Format, ...] = ()
    """Files to write, several at once: coco is detections.json, label-png a PNG per photo with
    object ids (of a semantic model: category ids), yolo-seg polygons in txt files, overlay the
    photo with everything drawn on it, cutout a transparent PNG per object. By default coco and
    overlay, of a semantic model label-png and overlay."""
    tile: int | None = None
    """Predict large photos in tiles with sides of so many pixels, and merge across the seams."""
    tile_overlap: float = 0.2
    """Smallest share of a tile's side that neighbors have in common."""
    flip: bool = False
    """Predict the mirror image too, and merge both."""
    scales: tuple[float, ...] = (1.0,)
    """Predict at each of these multiples of the model's test size, and merge."""

    @property
    def has_views(self) -> bool:
        """Tell whether several views of a photo are merged."""
        return self.flip or self.scales != (1.0,)

    def check(self) -> None:
        """Raise a RecipeError that lists all invalid values."""
        rules = [
            (
                self.tile is None or self.tile >= _MIN_TILE_PX,
                f"--tile {self.tile}: at least {_MIN_TILE_PX} pixels",
            ),
            (
                0 <= self.tile_overlap <= 0.5,
                f"--tile-overlap {self.tile_overlap:g}: from 0 to 0.5",
            ),
            (
                bool(self.scales) and all(0.1 <= each <= 10 for each in self.scales),
                f"--scales {' '.join(f'{each:g}' for each in self.scales)}: one or more, each from "
                "0.1 to 10",
            ),
        ]
        wrong = [text for holds, text in rules if not holds]
        if wrong:
            raise RecipeError("\n".join(wrong))

    def choose_formats(self, *, is_semantic: bool, is_video: bool) -> Sequence[Format]:
        """Return the formats to write.

        Raises:
            RecipeError: a format does not exist for this kind of model or input.
        """
        known = {
            "label maps": _OF_SEMANTIC if is_semantic else None,
            "videos": _OF_VIDEO if is_video else None,
        }
        for kind, formats in known.items():
            wrong = [each for each in self.format if formats and each not in formats]
            if wrong:
                raise RecipeError(
                    f"--format {' '.join(wrong)}: not for {kind}; choose from "
                    f"{' and '.join(formats or ())}"
                )
        if self.format:
            return self.format
        if is_semantic:
            return ("overlay",) if is_video else _OF_SEMANTIC
        return _OF_VIDEO
