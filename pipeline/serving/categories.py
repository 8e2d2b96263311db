"""What a registered model holds beside weights and recipe: its categories, and how it answers."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.data.manifest import Category
from pipeline.errors import RegistryError

SCORE_THRESHOLD = 0.5
"""Detections below are left out unless a caller asks for them: a list for people, not for AP."""


def categories_to_json(categories: Sequence[Category]) -> str:
    """Write categories in the order of category_index."""
    return json.dumps([asdict(each) for each in categories], indent=1) + "\n"


def categories_from_json(text: str) -> tuple[Category, ...]:
    """Read what categories_to_json wrote.

    Raises:
        RegistryError: the text is another.
    """
    try:
        categories = tuple(Category(**each) for each in json.loads(text))
    except (ValueError, TypeError) as error:
        raise RegistryError(
            f"categories.json of the model is damaged ({error}); register it again"
        ) from error
    if [each.category_index for each in categories] != list(range(len(categories))):
        raise RegistryError(
            "categories.json of the model does not count category_index 0, 1, 2, ...; "
            "register it again"
        )
    return categories
