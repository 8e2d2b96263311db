"""Options of the pages of models."""

from dataclasses import dataclass

from bsm.configs.rules import Fraction, PositiveInt
from pipeline.recipe import RecipePart


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureOptions(RecipePart):
    """The photos and objects whose features are shown."""

    photos: PositiveInt = 12
    """Largest number of photos."""
    objects: PositiveInt = 4
    """Largest number of objects of a photo, the best first."""
    score: Fraction = 0.5
    """Lowest score of an object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareOptions(RecipePart):
    """The photos on which models are compared."""

    photos: PositiveInt = 12
    """Largest number of photos."""
    score: Fraction = 0.5
    """Lowest score of an object."""
    width: PositiveInt = 420
    """Width of each picture, in pixels."""
