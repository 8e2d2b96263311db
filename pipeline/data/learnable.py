"""Judge a whole data set: valid entries alone do not mean that there is anything to learn from.

Manifests of earlier versions have no counts by category; what they do not say is not judged.
"""

from collections import Counter

from pipeline.data.manifest import Manifest
from pipeline.text import format_names


def describe_unlearnable(manifest: Manifest) -> str:
    """Say why nothing can be learned from or measured on a data set; "" if something can."""
    if manifest.task == "semantic":
        return _describe_single_class(manifest)
    if not manifest.annotations:
        return "it has no annotation"
    if manifest.category_images and not any(manifest.category_images):
        return (
            f"all of its {manifest.annotations} annotations are crowds (iscrowd 1), which are "
            "neither learned nor measured. If they are single objects, as in brush masks of CVAT, "
            "write iscrowd 0"
        )
    return ""


def describe_gaps(manifest: Manifest) -> list[str]:
    """List what a model cannot learn from a data set: everything, or some of its categories."""
    reason = describe_unlearnable(manifest)
    gaps = [f"there is nothing to learn or to measure: {reason}"] if reason else []
    is_semantic = manifest.task == "semantic"
    counts = manifest.category_px if is_semantic else manifest.category_images
    what = "pixel" if is_semantic else "object"
    names = [each.name for each in manifest.categories]
    empty = [name for name, count in zip(names, counts, strict=False) if not count]
    if empty:
        gaps.append(
            f"{len(empty)} of {len(names)} categories have no {what}: {format_names(empty)}"
        )
    same = [name for name, count in Counter(names).items() if count > 1]
    if same:
        gaps.append(f"several categories have the same name: {format_names(same)}")
    return gaps


def _describe_single_class(manifest: Manifest) -> str:
    shown = [
        each.name
        for each, pixels in zip(manifest.categories, manifest.category_px, strict=False)
        if pixels
    ]
    if not manifest.category_px or len(shown) >= min(2, len(manifest.categories)):
        return ""
    what = f"{shown[0]} is the only class with a pixel" if shown else "no pixel has a class"
    return (
        f"{what}. The value 255 is no class: in masks of 0 and 255, write the class's value in "
        "place of 255"
    )
