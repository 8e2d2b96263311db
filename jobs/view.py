#!/usr/bin/env python
"""Look at a data set: photos, masks and targets in one HTML file that opens from disk.

python jobs/view.py data ~/shards/photos/train
python jobs/view.py data ~/shards/photos/train --category cat dog --size small
python jobs/view.py data ~/shards/photos/train --kernel-size 9 --out nine.html
"""

from typing import Annotated

import tyro

from pipeline.cli import Result, Verb, run_verb
from pipeline.data_view.options import ViewOptions

DEFAULTS = ViewOptions()


def data(
    *,
    shards: Annotated[str, tyro.conf.Positional],
    show: Annotated[ViewOptions, tyro.conf.arg(name="")] = DEFAULTS,
    out: str = "data.html",
) -> Result:
    """Show photos of shards with their masks, and the targets that a model is trained on.

    Args:
        shards: folder or URI of a split's shards.
        show: see `ViewOptions`.
        out: file to write.
    """
    from pipeline.data_view.view import view_data

    result = view_data(shards, show, out=out)
    print(f"view: {result['photos']} photos in {result['out']}")
    return result


VERBS: dict[str, Verb] = {"data": data}

if __name__ == "__main__":
    run_verb(VERBS)
