"""Each command and each of Ray's own processes imports what it uses, so that nobody waits for it.

Prediction is in tests/jobs/test_predict.py, the processes of a run are in
tests/system/test_training_ray.py.
"""

import subprocess
import sys
from pathlib import Path

from tests.heavy_imports import HEAVY, list_heavy
from tests.pipeline.data.coco_samples import SPLIT, small_coco

ROOT = Path(__file__).parents[1]


COMMANDS = (
    "command.py --help",
    "command.py train --help",
    # The default ingests so few photos without Ray.
    f"ingest.py coco --root coco --split {SPLIT} --out shards",
    "audit.py --deep --data shards",
    f"evaluate.py --truth coco/annotations/instances_{SPLIT}.json --detections none.json",
)


def test_commands_on_data_import_neither_ray_nor_torch(tmp_path):
    small_coco(tmp_path / "coco", images=4)
    (tmp_path / "none.json").write_text("[]")
    for command in COMMANDS:
        job, *arguments = command.split()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", ROOT / "jobs" / job, *arguments],
            check=False,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        # pyarrow imports pandas to convert arrays.
        assert list_heavy(done.stderr) <= {"pandas"}, command


RAY_PROCESSES = {
    "pipeline.doctor.probe": set(),
    "pipeline.training.log_relay": {"ray"},
    "pipeline.data.ingest_tasks": {"ray"},
    "pipeline.training.failures": {"ray", "ray.data", "ray.train", "pandas"},
    "pipeline.data.ray_chapters": {"ray", "ray.data", "ray.train", "pandas"},
    "pipeline.data.read_rows": {"ray", "ray.data", "ray.train", "pandas"},
    "pipeline.tuning.trial": {"ray", "ray.data", "ray.train", "pandas"},
}
"""What an actor or task of ours may import, in an order in which one process can import all."""


def test_actors_and_data_tasks_import_no_model():
    code = "import sys\n"
    for module in RAY_PROCESSES:
        code += f"import {module}\nprint(*sorted({set(HEAVY)} & set(sys.modules)))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    found = dict(zip(RAY_PROCESSES, map(str.split, done.stdout.splitlines()), strict=True))
    assert {module: set(names) for module, names in found.items()} == RAY_PROCESSES
