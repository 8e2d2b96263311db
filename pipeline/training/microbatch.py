"""Find how many images fit into one forward and backward pass, for images_per_microbatch "auto".

The number is found once, by trying, and is then part of the run's recipe: a resume takes it from
there, and the run is the one that the number would have given.
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bsm.activation_checkpointing import checkpoint_activations
from bsm.build import build_model
from bsm.configs.models import ModelConfig, without_weights
from bsm.instance.tensors import Targets
from pipeline import storage
from pipeline.data.batch import Batch
from pipeline.data.stream import local_batches
from pipeline.recipe import Recipe, reads_masks, to_json
from pipeline.training import checkpoint
from pipeline.training.checkpoint import CheckpointRef
from pipeline.training.optim import build_optimizer
from pipeline.training.preflight import PreparedRun
from pipeline.training.step import train_step
from pipeline.training.weight_average import WeightAverage

_log = logging.getLogger(__name__)

_PIXELS_ON_CPU = 2 * 800 * 1333
"""Pixels of a pass on a CPU, two images of detectron2's size: nothing can be tried there, as a
process that takes too much memory is killed."""

_SAMPLES = 32
"""Training samples whose largest height, width and number of objects are tried."""

_OBJECTS = 128
"""Objects of a tried image: a trained model finds as many RoIs with a mask (detectron2)."""

_SHARE = 0.9
"""Of the memory that a pass may take: samples may be larger than those that were tried."""


def resolve_microbatch(prepared: PreparedRun) -> PreparedRun:
    """Replace images_per_microbatch "auto" by a number, in the run's saved recipe too.

    Raises:
        StorageError: the recipe cannot be written.
    """
    recipe = prepared.recipe
    if recipe.scale.images_per_microbatch != "auto":
        return prepared
    images = _read_earlier(prepared.resume_from) or _find(recipe, train_uri=prepared.train_uri)
    _log.info("--scale.images-per-microbatch auto is %d in this run", images)
    scale = replace(recipe.scale, images_per_microbatch=images)
    identity = replace(prepared.identity, recipe=replace(prepared.identity.recipe, scale=scale))
    storage.write_bytes_atomic(
        storage.join(prepared.run_uri, "recipe.json"), to_json(identity.recipe).encode()
    )
    return replace(prepared, recipe=replace(recipe, scale=scale), identity=identity)


def _read_earlier(ref: CheckpointRef | None) -> int:
    """Read the number that the run has trained with; 0 if it has not."""
    if ref is None:
        return 0
    earlier = checkpoint.load_info(ref)["recipe"]["scale"].get("images_per_microbatch")
    return earlier if isinstance(earlier, int) else 0


def _find(recipe: Recipe, *, train_uri: str) -> int:
    scale = recipe.scale
    worker_batch = recipe.optim.global_batch // max(scale.num_workers, 1)
    if not scale.use_gpu:
        return split_evenly(worker_batch, largest=_count_on_cpu(recipe))
    if scale.num_workers == 0:
        return find_on_device(recipe, train_uri=train_uri, device="cuda")
    import ray  # noqa: PLC0415

    from pipeline.training.capacity import start_ray  # noqa: PLC0415  imports ray

    start_ray(recipe)
    # A process of its own, which leaves nothing on the GPU.
    make_task: Any = ray.remote(num_gpus=1, num_cpus=scale.cpus_per_worker, max_calls=1)
    found: int = ray.get(
        make_task(find_on_device).remote(recipe, train_uri=train_uri, device="cuda")
    )
    return found


def _count_on_cpu(recipe: Recipe) -> int:
    data = recipe.data
    instance_px = max(data.short_edge_px) * data.long_edge_px
    image_px = data.crop_px**2 if recipe.model.task == "semantic" else instance_px
    return max(1, _PIXELS_ON_CPU // image_px)


def find_on_device(
    recipe: Recipe,
    *,
    train_uri: str,
    device: str,
    build: Callable[[ModelConfig], nn.Module] = build_model,
) -> int:
    """Find the number of images per pass on a device of this machine, by steps that do not count.

    Images of the largest size of some training samples, full of objects, are tried. If not even one
    fits it is 1: real images may be smaller.

    Args:
        recipe: with absolute paths.
        train_uri: shards of the training split.
        device: of the model.
        build: builds the model.
    """
    trial = _Trial(recipe, train_uri=train_uri, device=torch.device(device), build=build)
    worker_batch = recipe.optim.global_batch // max(recipe.scale.num_workers, 1)
    largest = find_largest(trial.fits, limit=worker_batch)
    del trial
    _free_memory(torch.device(device))
    return split_evenly(worker_batch, largest=largest)


def find_largest(fits: Callable[[int], bool], *, limit: int) -> int:
    """Find the largest number that fits, by doubling and then bisection; 1 if none does."""
    low, high = 1, 2
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def split_evenly(images: int, *, largest: int) -> int:
    """Return the smallest number per pass with as few passes as the largest one."""
    passes = -(-images // largest)
    return -(-images // passes)


class _Trial:
    """A model and its optimizer on a device, to try passes with."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        train_uri: str,
        device: torch.device,
        build: Callable[[ModelConfig], nn.Module],
    ) -> None:
        self._recipe, self._device = recipe, device
        self._model = build(without_weights(recipe.model)).to(device).train()
        if recipe.scale.activation_checkpointing:
            checkpoint_activations(self._model)
        self._optimizer = build_optimizer(self._model, optim=recipe.optim)
        decay = recipe.optim.ema_decay
        self._average = WeightAverage(self._model, decay=decay) if decay else None
        self._largest = _read_largest(recipe, train_uri)

    def fits(self, images: int) -> bool:
        """Tell whether a step of two passes of as many images leaves enough memory."""
        # The second pass starts with the gradients of the first.
        batch, fits = _repeat_image(self._largest, images=images), True
        try:
            train_step(
                self._model,
                self._optimizer,
                microbatches=[batch, batch],
                step=0,
                optim=self._recipe.optim,
                device=self._device,
            )
        except torch.OutOfMemoryError:
            fits = False
        self._optimizer.zero_grad(set_to_none=True)
        return _free_memory(self._device) and fits


def _free_memory(device: torch.device) -> bool:
    """Give back what nothing holds any more; tell whether a tenth was free at the peak."""
    gc.collect()
    if device.type != "cuda":
        return True
    total = torch.cuda.get_device_properties(device).total_memory
    peak = torch.cuda.max_memory_reserved(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return peak <= _SHARE * total


def _read_largest(recipe: Recipe, train_uri: str) -> Batch:
    """Read samples at the largest training size, padded to one size."""
    data = replace(recipe.data, short_edge_px=(max(recipe.data.short_edge_px),))
    steps = local_batches(
        train_uri,
        data,
        seed=recipe.seed,
        global_batch=_SAMPLES,
        images_per_microbatch=_SAMPLES,
        first_step=0,
        stop_step=1,
        with_masks=reads_masks(recipe.model),
    )
    (step,) = steps
    (batch,) = step.microbatches
    return batch


def _repeat_image(batch: Batch, *, images: int) -> Batch:
    """Repeat the image with the most objects, without padding, and its objects."""
    targets: Any = batch.targets
    is_instance = isinstance(targets, Targets)
    index = int(targets.valid.sum(dim=1).argmax()) if is_instance else 0

    def repeat(tensor: Tensor) -> Tensor:
        return tensor[index : index + 1].repeat_interleave(images, dim=0)

    changes: dict[str, Any] = {
        name: repeat(getattr(batch, name))
        for name in batch.__dataclass_fields__
        if isinstance(getattr(batch, name), Tensor)
    }
    height, width = batch.images.shape[-2:]
    changes["image_sizes_hw"] = torch.tensor([[height, width]] * images)
    changes["damage"] = None  # of as many samples as the batch had
    repeated = targets._replace(
        **{name: repeat(v) for name, v in targets._asdict().items() if v is not None}
    )
    return replace(batch, **changes, targets=_fill_slots(repeated) if is_instance else repeated)


def _fill_slots(targets: Targets) -> Targets:
    """Repeat the objects of each image until there are as many as a trained model finds."""
    slots = targets.valid.shape[1]
    times = -(-_OBJECTS // max(slots, 1))
    return targets._replace(
        **{
            name: torch.cat([value] * times, dim=1)
            for name, value in targets._asdict().items()
            if value is not None and value.ndim > 1
        }
    )
