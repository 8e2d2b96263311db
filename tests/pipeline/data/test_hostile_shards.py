"""Shards with numbers that would take gigabytes are refused."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.data.read_rows import make_plan
from pipeline.data.repeat_factors import repeat_factors
from pipeline.errors import DatasetError
from tests.fuzz.model_readers import write_shards


@pytest.mark.parametrize("index", [-1, 2**40])
def test_a_category_of_a_damaged_shard_takes_no_memory_of_its_size(index: int):
    category = np.array([0, 0, index])
    factors = repeat_factors(np.arange(3), category, rows=3, threshold=1)
    assert factors == pytest.approx([1.5**0.5, 1.5**0.5, 3**0.5])


def test_a_missing_column_is_named(tmp_path):
    folder, manifest = write_shards(tmp_path)
    table = pq.read_table(folder / "0.parquet")
    pq.write_table(table.drop_columns(["is_crowd"]), folder / "0.parquet")
    with pytest.raises(DatasetError, match="is_crowd: missing, or not as in a shard"):
        make_plan(str(folder), manifest, seed=0, global_batch=2, repeat_threshold=1)
