"""Read the features of the squeeze while a model predicts.

A hook on the squeeze keeps what it takes and returns, so the prediction is the model's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bsm.instance.mask_heads.squeeze import SqueezeMaskHead
from bsm.instance.rcnn import MaskRCNN
from bsm.instance.roi import find_used_slots
from bsm.instance.tensors import Detections
from bsm.light import LightBoundarySqueeze
from bsm.semantic.squeeze import SqueezeHead
from bsm.squeeze import BoundarySqueeze
from pipeline.data import collate_semantic
from pipeline.data.collate import collate_images
from pipeline.data.photo import Pixels
from pipeline.errors import RecipeError
from pipeline.evaluation.label_maps import label_batch
from pipeline.model_view.colors import Floats
from pipeline.serving.predictor import Predictor


class SqueezeView(NamedTuple):
    """The results of the squeeze for an object, over its RoI, or for a frame."""

    title: str
    box_xyxy: tuple[float, float, float, float]
    """The RoI in pixels of the photo; of a frame all of it."""
    contraction_flow: Floats
    """(2, h, w), x and y, in half cells."""
    expansion_flow: Floats
    feature: Floats
    """(C, h, w): F_boundary."""
    boundary: Floats
    """(H, W) probabilities; of a frame the largest of all classes."""
    before: NDArray[np.bool_] | None
    """The mask predictor's answer to the feature before the squeeze; frames have none."""
    after: NDArray[np.uint8]
    """The mask 0 or 1 from the squeezed feature; of a frame its label map."""


def check_squeeze(predictor: Predictor, uri: str) -> None:
    """Raise if a model has no squeeze with flows and a boundary.

    Raises:
        RecipeError: it has not.
    """
    model: Any = predictor.model
    head = getattr(model, "mask_head", None) or getattr(model, "head", None)
    if not isinstance(head, SqueezeMaskHead | SqueezeHead):
        raise RecipeError(
            f"{uri} has no boundary squeeze; compare its masks with those of others: "
            f"bsm view models {uri} OTHER --images PHOTOS"
        )
    config = head.config.squeeze
    if config.warp != "flow" or len(config.branches) < 3:
        raise RecipeError(
            f"{uri} has warp {config.warp!r} and the branches {', '.join(config.branches) or '-'}; "
            "this page shows flows of contraction and expansion, and the boundary. Choose a model "
            "that has all of them"
        )


def view_instances(
    predictor: Predictor, pixels: Pixels, *, score: float, objects: int
) -> list[SqueezeView]:
    """Detect the objects of a photo, and read the squeeze of the best ones.

    Args:
        predictor: of a Mask R-CNN with a squeeze, see `check_squeeze`.
        pixels: (H, W, 3) RGB.
        score: lowest score.
        objects: largest number of objects.
    """
    model = cast(MaskRCNN, predictor.model)
    head = cast(SqueezeMaskHead, model.mask_head)
    batch = collate_images([pixels], predictor.recipe.data).to(predictor.device)
    with torch.inference_mode(), _record(head.squeeze) as calls:
        found: Detections = model(batch.images, batch.image_sizes_hw)
        before = torch.cat([call.roi_features for call in calls])
        refined, boundary, contraction, expansion = (
            torch.cat([call.features[name] for call in calls])
            for name in ("refined", "boundary", "contraction_flow", "expansion_flow")
        )
        slots = find_used_slots(found.valid)
        category = found.category_index.flatten()[slots]
        band = cast(nn.Module, head.boundary)(boundary, category).sigmoid()
        masks = [head.mask(each, category).sigmoid() > 0.5 for each in (before, refined)]
    scale = (batch.original_sizes_hw[0] / batch.image_sizes_hw[0]).flip(0).repeat(2)
    boxes = found.boxes_xyxy[0][slots] * scale
    sides = boxes[:, 2:] - boxes[:, :2]
    scores = found.scores.flatten()[slots]
    kept = found.valid.flatten()[slots] & (scores >= score) & (sides >= 1).all(dim=1)
    best = [row for row in scores.argsort(descending=True).tolist() if kept[row]][:objects]
    return [
        SqueezeView(
            title=f"{predictor.categories[int(category[row])].name} {float(scores[row]):.2f}",
            box_xyxy=tuple(boxes[row].tolist()),
            contraction_flow=_to_numpy(contraction[row]),
            expansion_flow=_to_numpy(expansion[row]),
            feature=_to_numpy(boundary[row]),
            boundary=_to_numpy(band[row]),
            before=masks[0][row].cpu().numpy(),
            after=masks[1][row].cpu().numpy().astype(np.uint8),
        )
        for row in best
    ]


def view_frame(predictor: Predictor, pixels: Pixels) -> SqueezeView:
    """Predict the label map of a frame, and read the squeeze.

    The frame is predicted at once, also by a model whose recipe has a sliding window: the squeezes
    of its windows would not make one map.

    Args:
        predictor: of a DeepLabV3+ with a squeeze, see `check_squeeze`.
        pixels: (H, W, 3) RGB.
    """
    model: Any = predictor.model
    head = cast(SqueezeHead, model.head)
    batch = collate_semantic.collate_images([pixels], predictor.recipe.data).to(predictor.device)
    with torch.inference_mode(), _record(head.squeeze) as calls:
        (labels,) = label_batch(model, batch, replace(predictor.recipe.evaluation, window_px=None))
        features = {name: value[0] for name, value in calls[0].features.items()}
        band = head.bands["boundary"](features["boundary"][None]).sigmoid()[0].amax(dim=0)
    # The input may be padded at the right and the bottom.
    shares = [
        int(inside) / side
        for inside, side in zip(batch.image_sizes_hw[0], batch.images.shape[-2:], strict=True)
    ]
    height, width = pixels.shape[:2]
    return SqueezeView(
        title="",
        box_xyxy=(0.0, 0.0, float(width), float(height)),
        contraction_flow=_crop(features["contraction_flow"], shares),
        expansion_flow=_crop(features["expansion_flow"], shares),
        feature=_crop(features["boundary"], shares),
        boundary=_crop(band, shares),
        before=None,
        after=labels,
    )


class _SqueezeCall(NamedTuple):
    roi_features: Tensor
    features: dict[str, Tensor]


@contextmanager
def _record(squeeze: BoundarySqueeze | LightBoundarySqueeze) -> Iterator[list[_SqueezeCall]]:
    """Keep the inputs and outputs of the squeeze; on a CPU it runs for a few RoIs at a time."""
    calls: list[_SqueezeCall] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...], made: Any) -> None:  # noqa: ANN401
        features = {
            "refined": made.refined,
            "boundary": made.boundary,
            "contraction_flow": made.flows.contraction,
            "expansion_flow": made.flows.expansion,
        }
        calls.append(_SqueezeCall(given[0], features))

    handle = squeeze.register_forward_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


def _crop(values: Tensor, shares: list[float]) -> Floats:
    height, width = values.shape[-2:]
    rows, columns = max(1, round(shares[0] * height)), max(1, round(shares[1] * width))
    return _to_numpy(values[..., :rows, :columns])


def _to_numpy(values: Tensor) -> Floats:
    array: Floats = values.float().cpu().numpy()
    return array
