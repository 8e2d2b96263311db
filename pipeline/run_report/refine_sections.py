"""The section of a run that trains a refiner: the masks that it refined."""

from pipeline.errors import PipelineError
from pipeline.run_report.matching import pair_in_order
from pipeline.run_report.object_section import OBJECTS, UNREADABLE, build_objects
from pipeline.run_report.page import Section
from pipeline.run_report.predictions import Predictions
from pipeline.run_report.run_folder import RunFolder
from pipeline.text import format_count


def build_sections(run: RunFolder) -> list[Section]:
    """Build the section of a run that trains a refiner."""
    try:
        refined = Predictions(run, file="refined.json")
        pairs = pair_in_order(refined.truth, refined.rows, dilation_ratio=refined.ratio)
        masks = format_count(len(pairs), "mask")
        text = f"{masks} {refined.scope}, damaged and then refined; the score is the confidence."
        return [build_objects(refined, pairs, text=text)]
    except (PipelineError, OSError, ValueError, KeyError) as error:
        return [Section(title=OBJECTS, gaps=[f"{UNREADABLE}: {error}"])]
