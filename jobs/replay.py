#!/usr/bin/env python
"""Repeat the step of a run whose loss was not finite, alone, and name the images that cause it.

python jobs/replay.py runs/NAME
"""

from tyro.conf import Positional

from pipeline.cli import Result, run_verb


def replay(run: Positional[str]) -> Result:
    """Repeat the step of a run whose loss was not finite.

    Args:
        run: folder or URI of the run, which has bad_batch.json.
    """
    from pipeline.training import bad_step

    return bad_step.replay(run)


if __name__ == "__main__":
    run_verb(replay)
