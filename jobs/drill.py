#!/usr/bin/env python
"""Inject faults into small training runs, and check that nothing is lost.

    python jobs/drill.py
    python jobs/drill.py driver-killed disk-full

Small disks and memory need root; docs/faults.md describes each fault.
"""

from pipeline.cli import run_verb
from pipeline.drill.drills import drill

if __name__ == "__main__":
    run_verb(drill)
