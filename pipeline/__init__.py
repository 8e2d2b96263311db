"""The system around the models: data, training, evaluation, tracking, registry and serving."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from pipeline.rows import Row

__all__ = ["main"]


def main(job: "Recipe | Mapping[str, Row]") -> None:
    """Train a recipe of a job file, with the overrides of the command line; see pipeline/cli.py."""
    from pipeline.cli import main as run  # noqa: PLC0415  importing the package stays cheap

    run(job)
