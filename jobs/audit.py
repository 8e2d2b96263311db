#!/usr/bin/env python
"""Audit a folder of shards; --deep checks every row.

python jobs/audit.py --data data/shards/val2017
"""

from pipeline.cli import run_verb
from pipeline.data.audit import audit

if __name__ == "__main__":
    run_verb(audit)
