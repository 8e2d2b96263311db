"""Write the report of a run: one HTML file in its folder, which opens from disk."""

from pipeline.run_report import instance_sections, refine_sections, sections, semantic_sections
from pipeline.run_report.page import Page, Section, write_page
from pipeline.run_report.run_folder import RunFolder, read_run
from pipeline.text import format_count


def write_report(run_uri: str, *, against: str = "", tracking_uri: str = "", out: str = "") -> str:
    """Write the report of a run.

    Args:
        run_uri: folder or URI of the run, STORAGE/NAME of its recipe.
        against: folder or URI of another run to compare it with; "" is none.
        tracking_uri: MLflow store of the runs; "" is that of each recipe.
        out: file to write; "" is report.html in the run's folder.

    Returns:
        The URI of the report.

    Raises:
        RecipeError: a folder is not that of a run.
        StorageError: the report cannot be written, or a recipe cannot be read.
    """
    run = read_run(run_uri, tracking_uri=tracking_uri)
    other = read_run(against, tracking_uri=tracking_uri) if against else None
    return write_page(build_page(run, other), folder=run.uri, out=out)


def build_page(run: RunFolder, other: RunFolder | None = None) -> Page:
    """Build the report of a run, beside another one."""
    recipe = run.recipe
    against = f", against {other.name}" if other else ""
    return Page(
        title=f"{run.name}{against}",
        subtitle=f"{format_count(recipe.optim.steps, 'step')} of "
        f"{format_count(recipe.optim.global_batch, 'image')} on "
        f"{recipe.data.train_split}, results in {run.uri}",
        sections=[
            sections.build_result(run, other),
            sections.build_training(run, other),
            *_build_task(run, other),
            sections.build_data(run),
            sections.build_recipe(run),
            sections.build_environment(run),
        ],
    )


def _build_task(run: RunFolder, other: RunFolder | None) -> list[Section]:
    match run.recipe.model.task:
        case "instance":
            return instance_sections.build_sections(run, other)
        case "semantic":
            return semantic_sections.build_sections(run, other)
        case "refine":
            return refine_sections.build_sections(run)
