"""Points are read at their positions, drawn the same everywhere, and chosen by uncertainty."""

import torch

from bsm.points import (
    draw_training_points,
    find_uncertain_cells,
    make_cell_centers,
    replace_cells,
    sample_points,
)


def test_points_at_cell_centers_read_the_cells():
    grids = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    points = make_cell_centers((5, 7), device=grids.device).expand(2, -1, -1)
    assert torch.allclose(sample_points(grids, points), grids.flatten(2), atol=1e-5)
    between = (points[:, :1] + points[:, 1:2]) / 2
    expected = (grids[:, :, 0, 0] + grids[:, :, 0, 1]) / 2
    assert torch.allclose(sample_points(grids, between)[..., 0], expected, atol=1e-5)
    assert sample_points(grids, torch.full((2, 1, 2), 2.0)).eq(0).all()
    assert sample_points(grids.bfloat16(), points).dtype == torch.bfloat16


def draw(seeds, identities, uncertainty_at=lambda at: -at[..., 0], **options):
    settings = {"num_points": 40, "oversample": 3, "importance": 0.75} | options
    return draw_training_points(
        torch.tensor(seeds), torch.tensor(identities), uncertainty_at, **settings
    )


def test_points_depend_only_on_their_own_seed_and_identity():
    together = draw([5, 5, 9], [0, 1, 0])
    for place, (seed, identity) in enumerate(((5, 0), (5, 1), (9, 0))):
        assert torch.equal(draw([seed], [identity])[0], together[place])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], together[2])


def test_most_points_are_the_most_uncertain_candidates_and_the_rest_is_uniform():
    seen = []

    def uncertainty_at(points):
        seen.append(points)
        return -points[..., 0]  # most uncertain at the left

    points = draw([3], [0], uncertainty_at, num_points=400)
    (candidates,) = seen
    assert candidates.shape == (1, 1200, 2)
    best = candidates[0, candidates[0, :, 0].argsort()[:300]]
    assert torch.equal(points[0, :300, 0].sort().values, best[:, 0])
    rest = points[0, 300:]
    assert ((rest >= 0) & (rest < 1)).all()
    assert (rest.mean(0) - 0.5).abs().max() < 0.1
    assert (rest.std(0) - 12**-0.5).abs().max() < 0.05
    assert draw([3], [0], importance=0.0).shape == (1, 40, 2)


def test_find_and_replace_cells():
    logits = torch.tensor([[[5.0, -0.1, 3.0], [0.2, -4.0, 1.0]]])
    index, points = find_uncertain_cells(-logits.abs(), num_points=2)
    assert index.tolist() == [[1, 3]]
    assert torch.allclose(points[0], torch.tensor([[0.5, 0.25], [1 / 6, 0.75]]))
    drawn = replace_cells(logits[:, None], index, torch.tensor([[[7.0, 8.0]]]))
    assert drawn[0, 0].tolist() == [[5.0, 7.0, 3.0], [8.0, -4.0, 1.0]]
    assert find_uncertain_cells(-logits.abs(), num_points=99)[0].shape == (1, 6)
