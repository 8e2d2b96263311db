#!/usr/bin/env python
"""Say whether this cluster can train, and what to do where it cannot.

ray job submit --working-dir . -- python jobs/doctor.py --job jobs/coco_r101.py \
    --storage s3://bucket/runs --tracking-uri http://mlflow:5000
python jobs/doctor.py

The second one looks at the cluster of RAY_ADDRESS, or at this machine alone.
"""

from pipeline.cli import run_verb
from pipeline.doctor.doctor import doctor

if __name__ == "__main__":
    run_verb(doctor)
