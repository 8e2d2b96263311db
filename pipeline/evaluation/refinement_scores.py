"""Scores of given masks and of their refined versions against the truth.

Per object: mask IoU, and boundary IoU in a wide and in a narrow band. The wide one is that of
boundary AP; the narrow one separates masks that are good already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.bands import CITYSCAPES_DILATION_RATIO, format_percent
from pipeline.evaluation.mask_quality import LARGE_PX, Floats, compare_masks, decode_mask
from pipeline.text import format_score, format_table

NARROW_RATIO = CITYSCAPES_DILATION_RATIO
"""Width of the narrow band, in image diagonals."""

_NAMES = ("mask_iou", "boundary_iou", "boundary_iou_narrow")


@dataclass(frozen=True, kw_only=True, slots=True)
class RefinementScores:
    """IoUs of objects, given and refined."""

    given: Floats
    """(objects, 3): mask IoU, boundary IoU in the wide band and in the narrow one."""
    refined: Floats
    area_px: Floats
    """(objects,) of the true masks."""

    def means(self) -> dict[str, float]:
        """Average over all objects, and over large ones.

        Returns:
            mask_iou, boundary_iou, boundary_iou_narrow, mask_iou_large, ... of the refined masks,
            and given_mask_iou, ... of the given ones; NaN if there are no such objects.
        """
        selections = {"": np.ones_like(self.area_px, bool), "_large": self.area_px >= LARGE_PX}
        return {
            f"{prefix}{name}{suffix}": float(ious[chosen, column].mean())
            if chosen.any()
            else float("nan")
            for prefix, ious in (("", self.refined), ("given_", self.given))
            for suffix, chosen in selections.items()
            for column, name in enumerate(_NAMES)
        }


def score_refinement(
    true: Mapping[str, Any], given: Mapping[str, Any], refined: Mapping[str, Any], *, ratio: float
) -> RefinementScores:
    """Score one object.

    Args:
        true: compressed RLE.
        given: mask before refinement.
        refined: mask after it.
        ratio: width of the wide band, in image diagonals.
    """
    mask, ratios = decode_mask(true), (ratio, NARROW_RATIO)
    before, after = (
        np.array([compare_masks(mask, decode_mask(each), ratios=ratios)])
        for each in (given, refined)
    )
    return RefinementScores(given=before, refined=after, area_px=np.array([float(mask.sum())]))


def join_scores(scores: Sequence[RefinementScores]) -> RefinementScores:
    """Concatenate the scores of objects."""
    nothing = RefinementScores(
        given=np.empty((0, 3)), refined=np.empty((0, 3)), area_px=np.empty(0)
    )
    parts = [nothing, *scores]
    return RefinementScores(
        given=np.concatenate([each.given for each in parts]),
        refined=np.concatenate([each.refined for each in parts]),
        area_px=np.concatenate([each.area_px for each in parts]),
    )


def format_scores(scores: RefinementScores, *, ratio: float) -> list[str]:
    """Format scores as a table: given, refined and their difference, also of large objects."""
    means = scores.means()
    labels = (
        "mask IoU",
        f"boundary IoU, band {format_percent(ratio)}",
        f"boundary IoU, band {format_percent(NARROW_RATIO)}",
    )
    large = int((scores.area_px >= LARGE_PX).sum())
    rows = [
        [
            f"{len(scores.area_px)} objects, {large} of them large",
            *("given", "refined", "change", "large: given", "refined", "change"),
        ]
    ]
    for label, name in zip(labels, _NAMES, strict=True):
        cells: list[str] = []
        for suffix in ("", "_large"):
            before, after = means[f"given_{name}{suffix}"], means[name + suffix]
            change = "-" if np.isnan(after) else f"{after - before:+.4f}"
            cells += [format_score(before), format_score(after), change]
        rows.append([label, *cells])
    return format_table(rows, align="<>", min_width=7)
