#!/usr/bin/env python
"""Check whether a cluster can train, and suggest fixes.

    ray job submit --working-dir . -- python jobs/doctor.py --job jobs/coco_r101.py
        --storage s3://bucket/runs --tracking-uri http://mlflow:5000
    python jobs/doctor.py

The second command checks the cluster in RAY_ADDRESS, or this machine.
"""

from pipeline.cli import run_verb
from pipeline.doctor.doctor import doctor

if __name__ == "__main__":
    run_verb(doctor)
