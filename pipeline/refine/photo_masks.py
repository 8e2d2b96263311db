"""Types of a refinement job: the masks of a photo, and what became of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.evaluation.mask_refinement import RefinedMask
from pipeline.evaluation.refinement_scores import RefinementScores
from pipeline.evaluation.rle import Rle


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectMask:
    """A mask, and what pairs it with its object in the truth."""

    rle: Rle
    category_id: int | None = None
    annotation_id: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoMasks:
    """The masks of a photo."""

    name: str
    """Path under the folder of photos."""
    masks: list[ObjectMask]
    truth: list[ObjectMask] = field(default_factory=list)
    """Objects to compare with, if there are any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoResult:
    """The refined masks of a photo."""

    refined: list[RefinedMask]
    """In the order of the masks; empty if the photo is left out."""
    scores: RefinementScores
    """Of the masks that have an object in the truth."""
    notices: list[tuple[str, str]] = field(default_factory=list)
    """Kind and reason of what decoding changed, or why the photo is left out."""
    left_out: bool = False
    """Whether the photo cannot be read or is too large."""


MakeRefiner = Callable[[Any], Callable[[PhotoMasks], PhotoResult]]
"""Makes the function that refines a photo from a model on its device."""


class MaskSource(Protocol):
    """Masks of files, and the place where refined ones are written."""

    @property
    def photos(self) -> Sequence[PhotoMasks]:
        """The photos with their masks."""

    @property
    def counts(self) -> dict[str, int]:
        """Counts of what is not refined, for the RESULT line."""

    def store(self, index: int, refined: Sequence[RefinedMask]) -> None:
        """Take the refined masks of a photo."""

    def write(self, model_uri: str) -> None:
        """Write everything, after the last photo."""
