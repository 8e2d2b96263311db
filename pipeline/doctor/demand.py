"""Read the resources that a job requests, from its recipe or from flags."""

import math
import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.doctor.facts import Demand, Node
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, ScaleConfig


def load_recipe(job: Path) -> Recipe:
    """Load the recipe of a job file without running the job.

    Raises:
        RecipeError: the file does not exist, or declares no recipe.
    """
    if not job.is_file():
        raise RecipeError(f"--job {job}: no such file; use one of jobs/*.py")
    declared = runpy.run_path(str(job)).get("RECIPE")
    if not isinstance(declared, Recipe):
        raise RecipeError(
            f"--job {job}: declares no RECIPE; use a training job, see jobs/README.md"
        )
    return declared


def apply_flags(
    recipe: Recipe | None,
    *,
    num_workers: int | None,
    cpus_per_worker: float | None,
    use_gpu: bool,
) -> ScaleConfig | None:
    """Apply flags to the scale of a recipe; return None without a recipe and flags.

    Raises:
        RecipeError: the flags are invalid.
    """
    if recipe is None and num_workers is None and cpus_per_worker is None and not use_gpu:
        return None
    scale = recipe.scale if recipe else ScaleConfig(num_workers=1)
    if num_workers is not None:
        scale = replace(scale, num_workers=num_workers)
    if cpus_per_worker is not None:
        scale = replace(scale, cpus_per_worker=cpus_per_worker)
    return replace(scale, use_gpu=True) if use_gpu else scale


def make_demand(scale: ScaleConfig | None, nodes: Sequence[Node], *, source: str) -> Demand:
    """Make the demand of a scale; without one, request a worker for each GPU, or each node."""
    if scale is not None:
        return Demand(
            num_workers=scale.num_workers,
            cpus_per_worker=scale.cpus_per_worker,
            use_gpu=scale.use_gpu,
            source=source,
        )
    gpus = math.floor(sum(node.gpus for node in nodes))
    return Demand(
        num_workers=gpus or sum(node.cpus > 0 for node in nodes) or 1,
        cpus_per_worker=1.0,
        use_gpu=gpus > 0,
        source="a worker for each " + ("GPU" if gpus else "node"),
    )
