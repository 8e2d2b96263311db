#!/usr/bin/env python
"""Train the recipe in a file: a sweep's winner, or the recipe.json of an earlier run.

python jobs/train.py runs/sweep_coco_r50/winner.json
"""

from pipeline.cli import main_file

if __name__ == "__main__":
    main_file()
