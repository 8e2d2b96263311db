#!/usr/bin/env python
"""Write the embedded data set of procedural shapes in the COCO layout.

python jobs/shapes.py --out data/shapes

Ingest it next: python jobs/ingest.py coco --root data/shapes --split train --out data/shards/train
"""

from pathlib import Path

from pipeline.cli import Result, run_verb
from pipeline.data.sources.shapes import write_shapes
from pipeline.errors import RecipeError


def shapes(*, out: Path, train_images: int = 1000, val_images: int = 60, seed: int = 0) -> Result:
    """Write the embedded data set of procedural shapes in the COCO layout.

    Equal arguments give equal bytes; a complete split is kept.

    Args:
        out: folder to write train/, val/ and annotations/ into.
        train_images: number of images in the split "train".
        val_images: number of images in the split "val".
        seed: of the random shapes.
    """
    if min(train_images, val_images) < 1 or seed < 0:
        raise RecipeError(
            f"train_images {train_images} and val_images {val_images} must be at least 1, "
            f"seed {seed} at least 0"
        )
    return write_shapes(out, train_images=train_images, val_images=val_images, seed=seed)


if __name__ == "__main__":
    run_verb(shapes)
