"""Write one HTML page with samples as a recipe trains them: resized, cropped, pasted, recolored."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from bsm.instance.tensors import Targets
from pipeline import storage
from pipeline.data.batch import Batch
from pipeline.data.manifest import Manifest, read_manifest
from pipeline.data.schema import get_shard_task
from pipeline.data.stream import local_batches
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe
from pipeline.report.draw import PALETTE, Instance, draw_instances
from pipeline.run_report.page import Page, Picture, Section, encode_picture, write_page
from pipeline.text import format_count

_PHOTO_PX = 640


def view_samples(
    recipe: Recipe,
    *,
    shards: str,
    samples: int,
    first_step: int,
    on_device: Callable[[Batch], Batch],
    out: str,
) -> dict[str, Any]:
    """Write the page of the samples of some steps.

    Args:
        recipe: gives the transforms, the seed and the global batch.
        shards: folder or URI of a split's shards; "" is the recipe's.
        samples: to show.
        first_step: step of the first one.
        on_device: what training does to a batch on the device.
        out: file to write.

    Returns:
        out, samples, objects and dropped objects, for the RESULT line.

    Raises:
        RecipeError: the recipe trains on label maps.
        DatasetError: the folder is not a complete split of instances.
        StorageError: a file cannot be read or written.
    """
    if get_shard_task(recipe.model.task) != "instance":
        raise RecipeError(f"{recipe.name} trains on label maps; view data shows these")
    uri = storage.absolute(shards or storage.join(recipe.data.root, recipe.data.train_split))
    manifest = read_manifest(uri)
    pictures, objects, dropped = [], 0, 0
    for step, batch in islice(_read_samples(recipe, uri, first_step), samples):
        pictures.append(_draw_sample(on_device(batch), manifest, step=step))
        objects += int(cast(Targets, batch.targets).valid.sum())
        dropped += _count_dropped(batch)
    page = Page(
        title=f"Samples: {recipe.name}",
        subtitle=f"{format_count(len(pictures), 'sample')} from step {first_step} on, seed "
        f"{recipe.seed}, of {uri}",
        sections=[
            Section(
                title="Samples",
                text="Images as they are trained, with the objects as their squeeze fields have "
                f"them. {format_count(dropped, 'object')} had no pixel left and were dropped.",
                pictures=[("", pictures)],
            )
        ],
    )
    counts = {"samples": len(pictures), "objects": objects, "dropped": dropped}
    return {"out": write_page(page, out=out), **counts}


def _read_samples(recipe: Recipe, uri: str, first_step: int) -> Iterator[tuple[int, Batch]]:
    global_batch = recipe.optim.global_batch
    steps = local_batches(
        uri,
        recipe.data,
        seed=recipe.seed,
        global_batch=global_batch,
        images_per_microbatch=1,
        first_step=first_step,
        stop_step=recipe.optim.steps,
    )
    for step in steps:
        for batch in step.microbatches:
            yield step.step, batch


def _draw_sample(batch: Batch, manifest: Manifest, *, step: int) -> Picture:
    targets = cast(Targets, batch.targets)
    height, width = batch.image_sizes_hw[0].tolist()
    photo = batch.images[0, :, :height, :width].permute(1, 2, 0).numpy()
    names = {each.category_index: each.name for each in manifest.categories}
    instances = []
    for slot in range(int(targets.valid[0].sum())):
        category = int(targets.category_index[0, slot])
        frame_xyxy = targets.field_frame_xyxy[0, slot].tolist()
        mask = _paint_field(targets.squeeze_field[0, slot].numpy(), frame_xyxy, (height, width))
        if mask.any():
            color = PALETTE[category % len(PALETTE)]
            instances.append(Instance(mask, names.get(category, str(category)), color))
    drawn = draw_instances(np.ascontiguousarray(photo), instances, min_side_px=0)
    scale = min(1.0, _PHOTO_PX / max(drawn.size))
    drawn = drawn.resize((max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))))
    lost = _count_dropped(batch)
    return encode_picture(
        drawn,
        f"step {step}, lane {int(batch.lanes[0])}, image {int(batch.image_id[0])}, "
        f"{width} x {height}" + (f", {lost} dropped" if lost else ""),
    )


def _count_dropped(batch: Batch) -> int:
    return 0 if batch.dropped is None else int(batch.dropped.sum())


def _paint_field(
    field: NDArray[np.int8], frame_xyxy: list[float], size_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Paint the inside of a squeeze field over its frame, which may be mirrored."""
    x0, y0, x1, y1 = frame_xyxy
    side = field.shape[0]
    x_scale, y_scale = side / (x1 - x0), side / (y1 - y0)
    to_cells = np.array(
        [
            [x_scale, 0, (0.5 - x0) * x_scale - 0.5],
            [0, y_scale, (0.5 - y0) * y_scale - 0.5],
        ]
    )
    distance = cv2.warpAffine(
        field.astype(np.float32),
        to_cells,
        size_hw[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=-1,
    )
    return np.asarray(distance > 0)
