"""Name the artifacts of a registered model, and read and write its categories."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.data.manifest import Category
from pipeline.data.text_files import parse_json, to_typed
from pipeline.errors import RegistryError

WEIGHTS_FILE = "model.safetensors"
RECIPE_FILE = "recipe.json"
CATEGORIES_FILE = "categories.json"

SCORE_THRESHOLD = 0.5
"""Default for predictions that people look at; AP needs all detections."""


def categories_to_json(categories: Sequence[Category]) -> str:
    """Serialize categories in the order of category_index."""
    return json.dumps([asdict(each) for each in categories], indent=1) + "\n"


def categories_from_json(text: str) -> tuple[Category, ...]:
    """Parse the output of categories_to_json.

    Raises:
        RegistryError: the text is not such a list.
    """
    try:
        categories = to_typed(tuple[Category, ...], parse_json(text))
    except ValueError as error:
        raise RegistryError(
            f"categories.json of the model is damaged ({error}); register it again"
        ) from error
    if [each.category_index for each in categories] != list(range(len(categories))):
        raise RegistryError(
            "categories.json of the model must have category_index 0, 1, 2, ... in order; "
            "register it again"
        )
    return categories
