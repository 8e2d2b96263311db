#!/usr/bin/env python
"""Train the recipe in a file: a sweep's winner, or what an earlier run kept of itself.

python jobs/train.py runs/sweep_coco_r50/winner.json
"""

from pipeline.cli import main_of_file

if __name__ == "__main__":
    main_of_file()
