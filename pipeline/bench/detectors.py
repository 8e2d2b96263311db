"""Whole detectors, for inference and training: ours beside torchvision's Mask R-CNN.

All have ResNet-50 with frozen norms. torchvision's has the weights of our plain Mask R-CNN, as
`bsm.checkpoints.torchvision` maps them, and the same image: 800 px on the short side, of random
pixels. Weights are random, the score threshold is set so that NMS has as much to do as in a trained
model.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from bsm.build import build_model
from bsm.checkpoints.torchvision import to_torchvision
from bsm.configs.instance import MaskHeadConfig, MaskRCNNConfig
from bsm.configs.shared import (
    FpnBackboneConfig,
    GuidedFlowConfig,
    SqueezeConfig,
    TargetConfig,
)
from bsm.instance.tensors import Targets
from pipeline.bench.disks import draw_targets
from pipeline.bench.report import Bar, Result, report
from pipeline.bench.timing import Case, time_in_turn, timed

SIZE_HW = (800, 1088)
_CANDIDATES = 1000
"""Pairs of a box and a category above the score threshold."""
_ROI_TARGETS = TargetConfig(source="roi")
_GUIDED = GuidedFlowConfig(weight=0.5)

HEADS = {
    "plain": MaskHeadConfig(kind="plain", targets=_ROI_TARGETS),
    "bmask": MaskHeadConfig(kind="bmask", targets=_ROI_TARGETS),
    "pointrend": MaskHeadConfig(kind="pointrend", targets=_ROI_TARGETS),
    "light": MaskHeadConfig(squeeze=SqueezeConfig(variant="light"), guided_flow=_GUIDED),
    "guided": MaskHeadConfig(guided_flow=_GUIDED),
    "squeeze": MaskHeadConfig(targets=_ROI_TARGETS),
}
"""The mask heads with the target sources of their recipes; squeeze is the released code's."""


def bench_detector(
    *, detections: Sequence[int], rounds: int, print_line: Callable[[str], None]
) -> Result:
    """Time inference on one image, from its pixels to boxes and masks of 28 x 28 cells.

    Pasting is left out for all: it is a benchmark of its own.
    """
    heads = ("plain", "light", "guided", "bmask", "pointrend")
    models = {name: _build(name).eval() for name in heads}
    for model in models.values():
        _share_weights(models["plain"], model)
    image = torch.randint(0, 256, (3, *SIZE_HW), dtype=torch.uint8)
    threshold = _find_threshold(models["plain"], image)
    theirs = build_torchvision(models["plain"]).eval()
    theirs.roi_heads.score_thresh = threshold
    # Without pasting; images keep their sizes.
    theirs.transform.postprocess = lambda found, *_: found

    def run(name: str, number: int) -> int:
        if name == "torchvision":
            theirs.roi_heads.detections_per_img = number
            return len(theirs([image.float() / 255])[0]["masks"])
        model = models[name]
        model.box_head.config = replace(
            model.box_head.config, detections_per_image=number, score_threshold=threshold
        )
        return int(model(image[None], torch.tensor([SIZE_HW])).valid.sum())

    def make(name: str, number: int) -> Case:
        def check() -> None:
            with torch.inference_mode():
                found = run(name, number)
            if found != number:
                raise AssertionError(f"{name}: {found} detections, not {number}")

        return timed(check)

    keys = [(name, number) for number in detections for name in ("torchvision", *heads)]
    cases = {f"{name}, {number}": make(name, number) for name, number in keys}
    runs = time_in_turn(cases, rounds=rounds, warm_ups=0, print_line=print_line)
    bars = []
    for n in detections:
        bars.append(Bar(over=f"plain, {n}", under=f"torchvision, {n}", at_most=1.0))
        limits = {"light": 1.08} if n == max(detections) else {}
        bars += [
            Bar(over=f"{head}, {n}", under=f"plain, {n}", at_most=limits.get(head))
            for head in heads[1:]
        ]
    return report(runs, bars, size_hw=SIZE_HW)


def make_detector_case(detections: int) -> Case:
    """Make a case of our plain detector that finds so many objects in one image."""
    model = _build("plain").eval()
    image = torch.randint(0, 256, (3, *SIZE_HW), dtype=torch.uint8)
    model.box_head.config = replace(
        model.box_head.config,
        detections_per_image=detections,
        score_threshold=_find_threshold(model, image),
    )

    @torch.inference_mode()
    def run() -> object:
        return model(image[None], torch.tensor([SIZE_HW]))

    return timed(run)


def bench_training_step(
    *, images: int, objects: int, rounds: int, print_line: Callable[[str], None]
) -> Result:
    """Time the losses, the gradients and the step of SGD, on the same images and objects.

    With random weights hardly any proposal overlaps an object, so nearly all RoIs whose masks are
    trained are the boxes of the objects.
    """
    heads = ("plain", "light", "squeeze")
    models: dict[str, nn.Module] = {name: _build(name).train() for name in heads}
    for name in heads:
        _share_weights(models["plain"], models[name])
    models["torchvision"] = build_torchvision(models["plain"]).train()
    batch = torch.randint(0, 256, (images, 3, *SIZE_HW), dtype=torch.uint8)
    sizes = torch.tensor([SIZE_HW] * images)
    targets = draw_targets(images, objects, SIZE_HW)
    their_targets = _to_torchvision_targets(targets)
    optimizers = {
        name: torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9
        )
        for name, model in models.items()
    }

    def make(name: str) -> Case:
        def step() -> None:
            if name == "torchvision":
                losses = models[name](list(batch.float() / 255), their_targets)
            else:
                losses = models[name](batch, sizes, targets)
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimizers[name].step()
            optimizers[name].zero_grad()

        return timed(step)

    cases = {name: make(name) for name in ("torchvision", *heads)}
    runs = time_in_turn(cases, rounds=rounds, print_line=print_line)
    bars = [
        Bar(over="plain", under="torchvision", at_most=0.95),
        Bar(over="light", under="plain", at_most=1.10),
        Bar(over="squeeze", under="plain", at_most=1.20),
    ]
    return report(runs, bars, size_hw=SIZE_HW, images=images, objects=objects)


def build_torchvision(ours: Any) -> Any:  # noqa: ANN401  torchvision has no types
    """Build torchvision's Mask R-CNN with the weights of our plain one, and its frozen norms."""
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    model = TorchvisionMaskRCNN(
        _resnet_fpn_extractor(body, trainable_layers=3),
        num_classes=ours.config.num_classes + 1,
        # Of training: as in detectron2, and so in our configs.
        rpn_post_nms_top_n_train=ours.config.proposals.top_k_after_nms,
    )
    model.load_state_dict(to_torchvision(ours))
    model.transform.resize = lambda image, target=None: (image, target)
    return model


def _to_torchvision_targets(targets: Targets) -> list[dict[str, Tensor | None]]:
    assert targets.masks is not None  # noqa: S101  draw_targets makes them
    return [
        {"boxes": boxes, "labels": labels + 1, "masks": masks}
        for boxes, labels, masks in zip(
            targets.boxes_xyxy, targets.category_index, targets.masks, strict=True
        )
    ]


def _build(head: str) -> Any:  # noqa: ANN401  an nn.Module with parts
    torch.manual_seed(0)
    backbone = FpnBackboneConfig(name="resnet50", norm="frozen", freeze_at=2)
    config = MaskRCNNConfig(backbone=backbone, mask_head=HEADS[head], box_convention="torchvision")
    model: Any = build_model(config)
    with torch.no_grad():
        # Scores that differ, so that their order is not one of rounding.
        model.box_head.scores.weight.mul_(8)
    return model


def _share_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights of the parts that both have; only mask heads differ."""
    shared = {k: v for k, v in source.state_dict().items() if not k.startswith("mask_head.")}
    target.load_state_dict(shared, strict=False)


@torch.inference_mode()
def _find_threshold(model: Any, image: Tensor) -> float:  # noqa: ANN401
    """Return the score that as many pairs of a box and a category exceed as NMS shall get."""
    seen: list[Tensor] = []
    hook = model.box_head.scores.register_forward_hook(lambda *args: seen.append(args[2]))
    model(image[None], torch.tensor([SIZE_HW]))
    hook.remove()
    scores = seen[0].softmax(-1)[:, :-1].flatten()
    return float(scores.topk(_CANDIDATES + 1).values[-1])
