#!/usr/bin/env python
"""Write the report of a run or a sweep: one HTML file that opens from disk.

    python jobs/report.py runs/first-try
    python jobs/report.py runs/first-try --against runs/second-try

Every run and every sweep writes its report at its end; this writes it again, also of a run from
before there were reports. --against puts another run's numbers and curves beside it.
"""

from typing import Annotated

import tyro

from pipeline.cli import Result, run_verb


def report(
    *,
    run: Annotated[str, tyro.conf.Positional],
    against: str = "",
    out: str = "",
    tracking_uri: str = "",
) -> Result:
    """Write the report of a run or a sweep: one HTML file that opens from disk.

    Args:
        run: folder or URI of the run: STORAGE/NAME of its recipe.
        against: folder or URI of another run, to compare with.
        out: file to write; by default report.html in the run's folder.
        tracking_uri: MLflow store of the runs, http://HOST:PORT or sqlite:///FILE; by default the
            recipe's, or else the one beside the run's folder.
    """
    from pipeline import storage
    from pipeline.errors import RecipeError
    from pipeline.run_report.report import write_report
    from pipeline.tuning.sweep_report import is_sweep, read_sweep, write_sweep_report

    folder = storage.absolute(run.rstrip("/"))
    if not is_sweep(folder):
        uri = write_report(run, against=against, tracking_uri=tracking_uri, out=out)
    elif against:
        raise RecipeError(
            f"{run} is a sweep, and --against compares runs: give the folder of one of its trials"
        )
    else:
        uri = write_sweep_report(*read_sweep(folder), folder=folder, out=out)
    print(f"report: {uri}")
    return {"report": uri}


if __name__ == "__main__":
    run_verb(report)
