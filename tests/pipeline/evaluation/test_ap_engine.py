"""The private part of vernier that LVIS AP needs is still there."""

from vernier import _core

from pipeline.evaluation.ap_engine import ENGINE


def test_private_functions_of_vernier() -> None:
    names = (
        "CocoDataset",
        "evaluate_bbox_grid",
        "evaluate_segm_grid",
        "evaluate_boundary_grid",
    )
    missing = [name for name in names if not hasattr(_core, name)]
    assert not missing, (
        f"{ENGINE} has no vernier._core.{', vernier._core.'.join(missing)}. These are private, and "
        "run_lvis in pipeline/evaluation/ap_engine.py calls them because the public API returns no "
        "precision by category without polars. Pin the previous version of vernier in "
        "pyproject.toml, or change run_lvis to the new API"
    )
    missing = [
        name for name in names[1:] if "dt_area" not in str(getattr(_core, name).__text_signature__)
    ]
    assert not missing, (
        f"{ENGINE}: {', '.join(missing)} no longer take dt_area, with which run_lvis in "
        "pipeline/evaluation/ap_engine.py passes the area of each detection (of the mask, not of "
        "the bbox). Pin the previous version of vernier in pyproject.toml, or change run_lvis"
    )
