"""Fixtures of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

# By default Ray's processes wait for all others of this machine, as the tests beside them.
os.environ.setdefault("RAY_worker_niceness", "0")
# A server of MLflow would start four processes for jobs that nobody submits.
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")

RAY_TESTS = (
    "tests/pipeline/evaluation/test_evaluate_model.py::test_ray_workers",
    "tests/system/test_ingest_ray.py::test_ray_equals",
    "tests/system/test_refine_ray.py",
    "tests/system/test_serve_ray",
    "tests/system/test_stream_ray.py",
    "tests/system/test_sweep_ray.py",
    "tests/system/test_training_ray.py",
)
"""All that use the fixture `one_ray`, so that there is only one."""
WHOLE_FILES = ("tests/system/", "tests/pipeline/export/test_exported_models.py")
"""Their tests share what takes long to set up."""
CLUSTER_TESTS = ("tests/system/test_two_nodes.py", "tests/system/test_doctor.py")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Run the tests that share a Ray in one process, first, and beside them all others.

    The tests that start clusters come last, beside nothing else if possible.
    """
    from xdist.scheduler import LoadScopeScheduling

    class RayFirst(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(RAY_TESTS):
                return "ray"
            return nodeid.partition("::")[0] if nodeid.startswith(WHOLE_FILES) else nodeid

        def _assign_work_unit(self, node: object) -> None:
            for file in CLUSTER_TESTS:
                if file in self.workqueue:
                    self.workqueue.move_to_end(file)
            super()._assign_work_unit(node)

    return RayFirst(config, log)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder with real photos and official layouts, from BSM_REAL_DATA."""
    folder = os.environ.get("BSM_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("BSM_REAL_DATA does not name a folder with real data")
    return Path(folder)


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """Start one Ray for all tests of a session: a second one with other settings does not start."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Four workers of half a CPU and Ray Data, possibly more CPUs than the machine has. More
        # tasks at once would only be more processes with imports of their own.
        ray.init(address="local", num_cpus=3, object_store_memory=300 * 2**20, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def registered_model(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Register a tiny model with random weights: version 1 and champion of "tiny"."""
    # Torch and MLflow take seconds to import, and few tests need them.
    import torch

    from bsm.build import build_model
    from bsm.checkpoints.weights import save_weights
    from bsm.configs.instance import BoxHeadConfig, MaskHeadConfig, MaskRCNNConfig, ProposalConfig
    from bsm.configs.shared import FpnBackboneConfig
    from pipeline.data.manifest import Category
    from pipeline.recipe import DataConfig, Recipe
    from pipeline.registry.provenance import EvaluationRecord
    from pipeline.registry.register import register
    from pipeline.tracking.runs import open_run

    folder = tmp_path_factory.mktemp("registry")
    model = MaskRCNNConfig(
        num_classes=3,
        backbone=FpnBackboneConfig(name="resnet18", norm="group", freeze_at=0, fpn_channels=16),
        proposals=ProposalConfig(top_k_before_nms_test=50, top_k_after_nms=20),
        box_head=BoxHeadConfig(hidden=32, score_threshold=0.0, detections_per_image=5),
        mask_head=MaskHeadConfig(channels=16, num_convs=1),
    )
    recipe = Recipe(
        name="tiny",
        storage=str(folder / "runs"),
        model=model,
        data=DataConfig(short_edge_px=(64,), test_short_edge_px=64, long_edge_px=128),
    )
    categories = tuple(
        Category(category_id=7 + index, category_index=index, name=name)
        for index, name in enumerate(("disk", "star", "tube"))
    )
    weights = folder / "model.safetensors"
    torch.manual_seed(0)
    save_weights(build_model(model), weights)
    handle = open_run(recipe)
    register(
        handle,
        name="tiny",
        weights_path=weights,
        recipe=recipe,
        categories=categories,
        evaluation=EvaluationRecord(evaluated_on="val, 60 images", metrics={"boundary_ap": 0.25}),
    )
    return SimpleNamespace(
        handle=handle, name="tiny", weights=weights, recipe=recipe, categories=categories
    )
