#!/usr/bin/env python
"""Train for an hour while faults come at random, and check that nothing is lost and nothing grows.

python jobs/soak.py --minutes 60 --seed 0
"""

from pipeline.cli import run_verb
from pipeline.drill.soak import soak

if __name__ == "__main__":
    run_verb(soak)
