"""Shards with numbers that would take gigabytes are refused."""

import subprocess
import sys
from pathlib import Path

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


FLIP_TYPES = """
import sys
from pathlib import Path
from pipeline.data.audit import audit
from pipeline.errors import PipelineError
file = Path(sys.argv[1], "0.parquet")
data, tried = file.read_bytes(), 0
at = data.find(b"\\x15\\x02")
while at >= 0:
    file.write_bytes(data[: at + 1] + b"\\x03" + data[at + 2 :])
    try:
        audit(sys.argv[1])
    except PipelineError:
        pass
    tried += 1
    at = data.find(b"\\x15\\x02", at + 1)
print("tried", tried)
"""
"""Changes the type of each column of 32-bit numbers by one bit, wherever the file has it."""


def test_a_flipped_bit_in_a_footer_does_not_end_the_process(tmp_path):
    folder, _ = write_shards(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FLIP_TYPES, str(folder)],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout.split()[1]) > 5
