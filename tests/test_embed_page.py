"""The Python code of docs/embed.md runs and works."""

import re
from pathlib import Path

import torch
from torch import nn

TEXT = (Path(__file__).parents[1] / "docs" / "embed.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def run(marker: str, **names) -> dict:
    """Run the block that contains a marker, with the given names defined."""
    (block,) = [block for block in BLOCKS if marker in block]
    exec(block, names)  # noqa: S102  our own code
    return names


def test_the_squeeze_is_added_to_a_model_in_five_lines():
    (block,) = [block for block in BLOCKS if "roi_features" in block]
    assert len([line for line in block.splitlines() if line and "import" not in line]) == 5
    names = run(
        "roi_features",
        roi_features=torch.randn(3, 256, 14, 14, requires_grad=True),
        fine_features=torch.randn(3, 256, 28, 28, requires_grad=True),
        predictors=[
            nn.Sequential(nn.ConvTranspose2d(256, 1, 2, stride=2), nn.Flatten(1, 2))
            for _ in range(4)
        ],
        roi_masks=torch.rand(3, 28, 28).round(),
    )
    names["loss"].backward()
    assert names["roi_features"].grad.abs().sum() > 0
    assert names["fine_features"].grad.abs().sum() > 0


def test_the_squeeze_trains_inside_torchvisions_mask_rcnn():
    torch.manual_seed(0)
    model = run("maskrcnn_resnet50_fpn")["model"]
    model.transform.min_size, model.transform.max_size = (96,), 96
    masks = torch.zeros(2, 96, 96, dtype=torch.uint8)
    masks[0, 10:60, 10:50] = 1
    masks[1, 40:90, 50:90] = 1
    target = {
        "boxes": torch.tensor([[10.0, 10, 50, 60], [50, 40, 90, 90]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
    }
    losses = model([torch.rand(3, 96, 96)] * 2, [target, target])
    assert {"loss_mask", "loss_boundary", "loss_contraction", "loss_expansion"} <= set(losses)
    sum(losses.values()).backward()
    added = [model.roi_heads.mask_head.squeeze, model.roi_heads.mask_predictor.bands]
    assert all(p.grad is not None for module in added for p in module.parameters())
    (found,) = model.eval()([torch.rand(3, 96, 96)])
    assert found["masks"].shape[1:] == (1, 96, 96)


def test_the_squeeze_learns_inside_an_encoder_decoder():
    torch.manual_seed(0)
    model = run("class SharpNet")["SharpNet"]()
    at = torch.arange(64) - 32
    masks = torch.stack([(at[:, None] ** 2 + at**2 < r**2).float() for r in (12, 20)])
    images = masks[:, None].expand(-1, 3, -1, -1) + 0.3 * torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        losses = model(images, masks)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert set(losses) == {"loss_mask", "loss_boundary", "loss_contraction", "loss_expansion"}
    found = model.eval()(images) > 0.5
    iou = (found & (masks > 0)).sum() / (found | (masks > 0)).sum()
    assert iou > 0.9
