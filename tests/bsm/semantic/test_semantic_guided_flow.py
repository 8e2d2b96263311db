"""Near a border, both flows are supervised with the displacement to its nearest point."""

import math

import numpy as np
import pytest
import torch

from bsm.semantic.field import VOID
from bsm.semantic.guided_flow import make_border_flow_targets
from tests.bsm.semantic.label_maps import blobs


def flows(label: torch.Tensor, *, cells: tuple[int, int], stride: int = 8, reach: float = 2.0):
    return make_border_flow_targets(label, size_hw=cells, stride=stride, reach=reach)


def halves(normal_xy: tuple[float, float], offset: float, side: int = 64) -> torch.Tensor:
    """Draw two classes with a straight border, `offset` along the normal from the center."""
    at = torch.arange(side) + 0.5 - side / 2
    along = normal_xy[0] * at + normal_xy[1] * at[:, None]
    return (along > offset).to(torch.uint8)[None]


def signed_distance(normal_xy: tuple[float, float], offset: float, cells: int = 8, stride: int = 8):
    center = stride * (torch.arange(cells) + 0.5) - cells * stride / 2
    return normal_xy[0] * center + normal_xy[1] * center[:, None] - offset


@pytest.mark.parametrize(
    ("angle", "offset", "normal_px", "tangent_px"),
    [
        (0, 0, 0, 0),
        (0, 3, 0, 0),
        (90, -5, 0, 0),
        (45, 0.3535, 0.36, 0.71),
        (26.565, 2, 0.75, 2),
        (200, -1.5, 0.75, 2),
    ],
)
def test_the_displacement_to_a_straight_border_is_along_its_normal(
    angle, offset, normal_px, tangent_px
):
    normal = (math.cos(math.radians(angle)), math.sin(math.radians(angle)))
    targets = flows(halves(normal, offset), cells=(8, 8))
    distance = signed_distance(normal, offset)
    inner = slice(2, -2)  # where the nearest point is on the map
    near = distance.abs()[inner, inner] < 15
    assert targets.contraction[0, inner, inner][near].all()
    x, y = 8 * targets.displacement[0, :, inner, inner]
    # A border is a stair of pixels, and its corners are not quite at the foot of the normal.
    across = x * normal[0] + y * normal[1] + distance[inner, inner]
    along = y * normal[0] - x * normal[1]
    assert across.abs()[near].max() <= normal_px + 1e-4
    assert along.abs()[near].max() <= tangent_px + 1e-4


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_it_points_to_the_nearest_of_all_border_points(stride: int, seed: int):
    cells, reach = (7, 9), 1.75
    label = blobs(seed, num_classes=4, size_hw=(stride * 7 - 3, stride * 9 - 1), void=0.1 * seed)
    targets = flows(label, cells=cells, stride=stride, reach=reach)
    pixels = label[0].numpy()
    points = []
    for y, x in np.ndindex(pixels.shape[0] - 1, pixels.shape[1] - 1):
        if len({*pixels[y : y + 2, x : x + 2].flat} - {VOID}) > 1:
            points.append((x + 0.5, y + 0.5))
    points = np.array(points)
    known = 0
    for row in range(cells[0]):
        for column in range(cells[1]):
            center = np.array([column, row]) * stride + (stride - 1) / 2
            way, near = (
                targets.displacement[0, :, row, column],
                bool(targets.contraction[0, row, column]),
            )
            y, x = row * stride + stride // 2, column * stride + stride // 2
            around = pixels[y - 1 : y + 1, x - 1 : x + 1]
            shortest = np.sqrt(((points - center) ** 2).sum(1)).min() / stride
            whole = around.shape == (2, 2) and not (around == VOID).any()
            assert near == (whole and shortest < reach)
            known += near
            if near:
                assert way.norm().item() == pytest.approx(shortest, abs=1e-5)
                apart = np.abs(points - center - stride * way.numpy()).max(1)
                assert apart.min() < 1e-4
            else:
                assert not way.any()
    assert known > 5


def test_both_flows_share_the_band():
    targets = flows(blobs(0, size_hw=(40, 48)), cells=(5, 6))
    assert torch.equal(targets.contraction, targets.expansion)
    assert targets.contraction.any()


def test_void_makes_no_border_and_one_class_has_none():
    label = torch.zeros(2, 32, 32, dtype=torch.uint8)
    label[0, :, 20:] = VOID
    label[1, :, 14:18] = VOID
    label[1, :, 18:] = 1
    targets = flows(label, cells=(4, 5))
    assert not targets.contraction.any()
    assert not targets.displacement.any()


@pytest.mark.parametrize("reach", [0.25, 0.5, 3.0])
def test_the_band_ends_at_its_reach(reach: float):
    label = halves((1.0, 0.0), offset=1.0)
    near = flows(label, cells=(8, 8), reach=reach).contraction[0, 4]
    wanted = signed_distance((1.0, 0.0), 1.0)[4].abs() < 8 * reach
    assert torch.equal(near.bool(), wanted)
