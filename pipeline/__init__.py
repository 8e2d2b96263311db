"""The system around the models: data, training, evaluation, tracking, registry and serving."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

__all__ = ["main"]


def main(recipe: "Recipe | Mapping[str, Recipe]") -> None:
    """Run the recipe of a job file, with what the command line changes; see pipeline/cli.py."""
    from pipeline.cli import main as run  # noqa: PLC0415  importing the package stays cheap

    run(recipe)
