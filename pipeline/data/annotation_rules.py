"""The rules for an annotation's optional values, shared by ingest and evaluation."""

from collections.abc import Mapping

DEFAULTS = {"iscrowd": "0 (no crowd)", "area": "the area of the mask or box"}
"""What is used for a key that an annotation lacks."""

AREA_FACTOR = 2
"""The area of a polygon differs from that of its pixels, but by less than this."""


def is_crowd(annotation: Mapping[str, object]) -> bool:
    """Tell whether an annotation is a crowd, which is neither learned nor counted as an object."""
    return bool(annotation.get("iscrowd", 0))


def is_object(annotation: Mapping[str, object], *, federated: bool) -> bool:
    """Tell whether metrics count an annotation: COCO's rules skip crowds, LVIS's areas of 0."""
    return annotation["area"] != 0 if federated else not is_crowd(annotation)


def is_area_off(area: float, *, mask_px: int) -> bool:
    """Tell whether an area is not that of the mask; some exporters write 0 or 1."""
    return not mask_px / AREA_FACTOR <= area <= mask_px * AREA_FACTOR
