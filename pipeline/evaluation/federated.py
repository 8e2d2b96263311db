"""What an LVIS truth says beside COCO's: which categories were looked for in an image.

LVIS does not label everything everywhere. An image names the categories that are surely not in it
(negative) and those of which not all objects are marked (not exhaustive); in all others but those
of its own annotations nobody looked. A category says whether it is rare, common or frequent.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pipeline.evaluation.problems import Faults, short

Frequency = Literal["r", "c", "f"]

IMAGE_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def check_federated(entries: Mapping[str, list[Any]], faults: Faults) -> None:
    """Look for what makes a truth none of LVIS.

    Args:
        entries: images and categories as the file gives them.
        faults: of the truth; more are added.
    """
    for image in _dicts(entries.get("images", [])):
        missing = [key for key in IMAGE_LISTS if not isinstance(image.get(key), list)]
        if missing:
            faults.add(
                "image that is not of LVIS", f"image {_id(image)}: no {', no '.join(missing)}"
            )
        for key in IMAGE_LISTS:
            values = image.get(key)
            odd = [v for v in values if type(v) is not int] if isinstance(values, list) else []
            if odd:
                where = f"image {_id(image)}: {key} holds {short(odd[0])}"
                faults.add("id that is not a number", where)
    for category in _dicts(entries.get("categories", [])):
        if category.get("frequency") not in get_args(Frequency):
            value = short(category.get("frequency"))
            faults.add("category without frequency", f"category {_id(category)}: frequency {value}")


def _dicts(entries: list[Any]) -> list[dict[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)]


def _id(entry: Mapping[str, Any]) -> str:
    return short(entry.get("id"))
