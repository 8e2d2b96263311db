"""Check the federated fields of an LVIS truth.

LVIS does not annotate every category in every image. An image lists the categories that are not in
it (negative) and those that are not exhaustively annotated; of all other categories, only those of
its annotations were checked. A category is rare, common or frequent.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pipeline.data.problems import is_id
from pipeline.evaluation.problems import Problems, show_value

Frequency = Literal["r", "c", "f"]

IMAGE_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def check_federated(entries: Mapping[str, list[Any]], problems: Problems) -> None:
    """Check the fields that LVIS adds to COCO.

    Args:
        entries: images and categories of the annotation file.
        problems: new problems of the file are added here.
    """
    for image in _select_dicts(entries.get("images", [])):
        missing = [key for key in IMAGE_LISTS if not isinstance(image.get(key), list)]
        if missing:
            where = f"image {_show_id(image)}: no {', no '.join(missing)}"
            problems.add("image without LVIS fields", where)
        for key in IMAGE_LISTS:
            values = image.get(key)
            bad = [v for v in values if not is_id(v)] if isinstance(values, list) else []
            if bad:
                where = f"image {_show_id(image)}: {key} holds {show_value(bad[0])}"
                problems.add("id is not an integer", where)
    for category in _select_dicts(entries.get("categories", [])):
        if category.get("frequency") not in get_args(Frequency):
            value = show_value(category.get("frequency"))
            where = f"category {_show_id(category)}: frequency {value}"
            problems.add("category without frequency", where)


def _select_dicts(entries: list[Any]) -> list[dict[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)]


def _show_id(entry: Mapping[str, Any]) -> str:
    return show_value(entry.get("id"))
