"""Every reader of files and requests from outside: valid samples, how to damage them, how to read.

`read` returns whether an input was accepted: False if its problems were counted. It raises one of
`refusals` if the reader refuses the input. Everything else is a finding.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.fuzz import data_readers, model_readers
from tests.fuzz.data_readers import Reader

NAMES = (
    *("coco", "lvis", "results", "truth", "mask-file", "photo", "label-png", "polygons"),
    *("submission", "class-list", "archive", "safetensors", "torch-file", "pickle", "checkpoint"),
    *("checkpoint-info", "recipe", "categories", "export-info", "record", "manifest", "shard"),
    *("form", "json-request", "mask-request"),
)


def make_readers(folder: Path) -> dict[str, Callable[[], Reader]]:
    """Return the readers by name, each made when it is called.

    Args:
        folder: for the files that they read.
    """
    found = {**vars(data_readers), **vars(model_readers)}
    makers = {name: found[f"_{name.replace('-', '_')}"] for name in NAMES}
    return {name: partial(make, folder) for name, make in makers.items()}
