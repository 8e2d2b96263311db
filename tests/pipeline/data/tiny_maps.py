"""Shards of a few drawn label maps, made as users make them."""

from pathlib import Path

from pipeline.data.ingest import ingest_dataset
from pipeline.data.ingest_config import SemanticIngest
from tests.pipeline.data.street_samples import label_maps


def write_map_shards(folder: Path, *, images: int = 6, split: str = "train") -> str:
    """Draw and ingest maps of 3 classes, 48 x 96, with a stripe of void."""
    label_maps(folder / "maps", images=images, split=split)
    out = str(folder / "shards" / split)
    ingest_dataset(SemanticIngest(root=str(folder / "maps"), split=split, out=out, workers=0))
    return out
