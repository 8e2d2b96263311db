import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.manifest import read_manifest
from pipeline.data.read_rows import make_plan
from pipeline.data.repeat_factors import Repeats, repeat_factors
from pipeline.data.seeds import sample_seeds
from pipeline.data.stream import local_batches
from pipeline.recipe import DataConfig
from tests.pipeline.data.tiny_shards import tiny_row, write_tiny_split

images = st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=30)


@given(images, st.floats(0.01, 0.9))
@settings(deadline=None)
def test_a_row_has_the_factor_of_its_rarest_category(categories, threshold):
    count = {c: sum(c in each for each in categories) for c in range(7)}
    expected = [
        max([1.0, *(math.sqrt(threshold / (count[c] / len(categories))) for c in each)])
        for each in categories
    ]
    row = np.repeat(np.arange(len(categories)), [len(each) for each in categories])
    category = np.array([c for each in categories for c in each], dtype=np.int64)
    found = repeat_factors(row, category, rows=len(categories), threshold=threshold)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_rounded_factors_are_unbiased_over_many_epochs():
    factors = np.array([1.0, 1.25, 2.0, 3.7])
    repeats = Repeats(factors=factors, image_ids=np.array([3, 9, 27, 81]))
    counts = np.stack([repeats.counts(7, epoch) for epoch in range(2000)])
    assert set(counts[:, 0]) == {1}
    assert set(counts[:, 1]) == {1, 2}
    assert set(counts[:, 2]) == {2}
    assert set(counts[:, 3]) == {3, 4}
    np.testing.assert_allclose(counts.mean(axis=0), factors, atol=0.05)
    assert repeats.lengths(7, range(10, 2000)) == counts[10:].sum(axis=1).tolist()
    # The counts depend only on seed, epoch and image, not on the order of the images.
    turned = Repeats(factors=factors[::-1], image_ids=repeats.image_ids[::-1])
    assert (turned.counts(7, 3) == counts[3][::-1]).all()
    assert any((repeats.counts(8, epoch) != counts[epoch]).any() for epoch in range(20))


def test_each_repetition_has_a_new_seed_and_the_first_one_is_unchanged():
    ids, epochs = np.arange(50), np.zeros(50, np.int64)
    once = sample_seeds(3, epochs=epochs, image_ids=ids)
    assert (sample_seeds(3, epochs=epochs, image_ids=ids, repeats=epochs) == once).all()
    drawn = [sample_seeds(3, epochs=epochs, image_ids=ids, repeats=epochs + k) for k in range(4)]
    assert len(np.unique(np.concatenate(drawn))) == 200


DATA = DataConfig(short_edge_px=(32, 40, 48), long_edge_px=64, test_short_edge_px=32)
RUN = {"seed": 3, "global_batch": 4, "images_per_microbatch": 4}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return write_tiny_split(tmp_path_factory.mktemp("shards") / "train")


def expected_factors(threshold: float) -> dict[int, float]:
    rows = [tiny_row(image_id) for image_id in range(100, 132)]
    shown = [
        {c for c, crowd in zip(r["category_index"], r["is_crowd"], strict=True) if not crowd}
        for r in rows
    ]
    count = {c: sum(c in each for each in shown) for c in range(3)}
    return {
        row["image_id"]: max([1.0, *(math.sqrt(threshold * 32 / count[c]) for c in each)])
        for row, each in zip(rows, shown, strict=True)
    }


def test_make_plan_computes_the_factors_from_the_rows(split):
    given = {"seed": 3, "global_batch": 4}
    plan = make_plan(split, read_manifest(split), repeat_threshold=0.9, **given)
    factors = expected_factors(0.9)
    assert plan._repeats.image_ids.tolist() == list(factors)
    np.testing.assert_allclose(plan._repeats.factors, list(factors.values()))
    assert max(factors.values()) > 1.5
    assert make_plan(split, read_manifest(split), repeat_threshold=0.0, **given)._repeats is None


def test_a_stream_repeats_images_with_new_draws_and_resumes_exactly(split):
    data = replace(DATA, repeat_threshold=0.9)
    whole = list(local_batches(split, data, **RUN, first_step=0, stop_step=40))
    rest = list(local_batches(split, data, **RUN, first_step=17, stop_step=40))
    for again, before in zip(rest, whole[17:], strict=True):
        assert torch.equal(again.microbatches[0].images, before.microbatches[0].images)
        assert torch.equal(
            again.microbatches[0].targets.sample_seed, before.microbatches[0].targets.sample_seed
        )
    plan = make_plan(split, read_manifest(split), seed=3, global_batch=4, repeat_threshold=0.9)
    seen = set()
    (item,) = plan.items(0, 40, rows_per_item=1000)
    first_id = np.array([[100, 108, 116], [121, 129, 0]])
    ids = first_id[item.shard_index, item.row_group_index] + item.row
    seeds = sample_seeds(3, epochs=item.epoch, image_ids=ids, repeats=item.repeat)
    for step, each in enumerate(whole):
        (batch,) = each.microbatches
        assert batch.image_id.tolist() == ids[4 * step : 4 * step + 4].tolist()
        assert batch.targets.sample_seed.tolist() == seeds[4 * step : 4 * step + 4].tolist()
        assert each.epoch == plan.epoch_of(step)
        seen.update(zip(batch.image_id.tolist(), batch.targets.sample_seed.tolist(), strict=True))
    assert len(seen) == 160
    assert item.repeat.max() > 0


def test_no_image_repeats_below_the_threshold(split):
    plain = next(local_batches(split, DATA, **RUN, first_step=5, stop_step=6))
    # No category is that rare, so no image repeats.
    again = replace(DATA, repeat_threshold=0.01)
    other = next(local_batches(split, again, **RUN, first_step=5, stop_step=6))
    assert torch.equal(plain.microbatches[0].images, other.microbatches[0].images)
    assert torch.equal(
        plain.microbatches[0].targets.sample_seed, other.microbatches[0].targets.sample_seed
    )
