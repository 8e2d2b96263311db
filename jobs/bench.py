#!/usr/bin/env python
"""Measure this project beside what else does the same, on this machine.

    python jobs/bench.py --list
    python jobs/bench.py paste

Cases run in turn in each round, and a ratio is that of two cases in the same round: median, lowest
and highest. CPU seconds stand beside wall time, because they hardly depend on the other load of the
machine; bars are those of CPU seconds. docs/benchmarks.md has the results.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.cli import Result, run_verb

Verb = Callable[..., Result]
Variant = Literal["eager", "compile", "cuda-graphs", "channels-last", "channels-last+compile"]


def paste(*, detections: int = 100, rounds: int = 3, threads: int = 1) -> Result:
    """Paste and encode masks of an image, beside torchvision's paste and pycocotools' encode.

    Args:
        detections: of the image, which is 1333 x 800 and 4000 x 3000.
        rounds: that count.
        threads: of torch.
    """
    from pipeline.bench import paste as bench

    _set_threads(threads)
    return bench.bench_paste(detections=detections, rounds=rounds, print_line=_print_line)


def evaluation(
    *,
    metric: Literal["segm", "boundary"] = "segm",
    images: int = 0,
    rounds: int = 1,
    threads: int = 1,
    peers_python: str = "",
) -> Result:
    """Evaluate COCO files, beside pycocotools, faster-coco-eval and hotcoco.

    Args:
        metric: mask or boundary AP.
        images: with 100 detections each; 0 is 1000 for mask AP and 200 for boundary AP.
        rounds: that count.
        threads: of every program.
        peers_python: a Python with the other programs; "" makes an environment in the cache.
    """
    from pipeline.bench import evaluation as bench

    return bench.bench_evaluation(
        metric=metric,
        images=images or {"segm": 1000, "boundary": 200}[metric],
        rounds=rounds,
        threads=threads,
        peers_python=peers_python,
        print_line=_print_line,
    )


def detector(
    *, detections: tuple[int, ...] = (100, 50, 20), rounds: int = 2, threads: int = 1
) -> Result:
    """Detect objects in an image of 800 px, beside torchvision's Mask R-CNN of the same weights.

    Args:
        detections: numbers of detections to time.
        rounds: that count.
        threads: of torch.
    """
    from pipeline.bench import detectors as bench

    _set_threads(threads)
    return bench.bench_detector(detections=detections, rounds=rounds, print_line=_print_line)


def step(*, images: int = 1, objects: int = 64, rounds: int = 3, threads: int = 1) -> Result:
    """Train a step on images of 800 px, beside torchvision's Mask R-CNN of the same weights.

    Args:
        images: of the batch.
        objects: per image; at least as many RoIs train masks.
        rounds: that count.
        threads: of torch.
    """
    from pipeline.bench import detectors as bench

    _set_threads(threads)
    return bench.bench_training_step(
        images=images, objects=objects, rounds=rounds, print_line=_print_line
    )


def feed(
    *,
    photos: str,
    split: str = "train2017",
    images: int = 96,
    rounds: int = 3,
    threads: int = 1,
) -> Result:
    """Feed training with photos of COCO at 800 px, beside torchvision's in a DataLoader.

    Args:
        photos: folder in the COCO layout: annotations/instances_SPLIT.json and SPLIT.
        split: to feed.
        images: of a run.
        rounds: that count.
        threads: of torch.
    """
    from pipeline.bench import feeds as bench

    _set_threads(threads)
    return bench.bench_feed(
        photos=photos, split=split, images=images, rounds=rounds, print_line=_print_line
    )


def targets(*, rois: int = 512, rounds: int = 20, threads: int = 1) -> Result:
    """Make the targets of a step's RoIs, beside a loop with cv2 and kornia.

    Args:
        rois: of the step.
        rounds: that count.
        threads: of torch.
    """
    from pipeline.bench import targets as bench

    _set_threads(threads)
    return bench.bench_targets(rois=rois, rounds=rounds, print_line=_print_line)


def augmentations(
    *,
    photos: str,
    split: str = "train2017",
    images: int = 96,
    rounds: int = 3,
    threads: int = 1,
) -> Result:
    """Feed training with photos of COCO, with each augmentation on every image.

    Args:
        photos: folder in the COCO layout: annotations/instances_SPLIT.json and SPLIT.
        split: to feed.
        images: of a run.
        rounds: that count.
        threads: of torch.
    """
    from pipeline.bench import augmentations as bench

    _set_threads(threads)
    return bench.bench_augmentations(
        photos=photos, split=split, images=images, rounds=rounds, print_line=_print_line
    )


def semantic_feed(
    *,
    photos: str,
    split: str = "train",
    images: int = 32,
    rounds: int = 3,
    threads: int = 1,
) -> Result:
    """Feed training with label maps of Cityscapes, beside cv2 class by class in a DataLoader.

    Args:
        photos: folder with leftImg8bit and gtFine.
        split: to feed.
        images: of a run.
        rounds: that count.
        threads: of torch.
    """
    from pipeline.bench import semantic_feed as bench

    _set_threads(threads)
    return bench.bench_semantic_feed(
        photos=photos, split=split, images=images, rounds=rounds, print_line=_print_line
    )


def ingest(*, photos: str, split: str = "train2017", rounds: int = 3) -> Result:
    """Ingest photos of COCO, beside a loop with pycocotools and Pillow.

    Args:
        photos: folder in the COCO layout: annotations/instances_SPLIT.json and SPLIT.
        split: to ingest.
        rounds: that count.
    """
    from pipeline.bench import ingesting as bench

    return bench.bench_ingest(photos=photos, split=split, rounds=rounds, print_line=_print_line)


def checkpoint(*, folder: str = "", rounds: int = 5, threads: int = 2) -> Result:
    """Save a checkpoint of the squeeze with R-101 and its optimizer, beside torch.save.

    Args:
        folder: for the files, which are deleted; "" is the temporary folder.
        rounds: that count.
        threads: of torch.
    """
    from jobs.coco_r101 import RECIPE
    from pipeline.bench import checkpoints as bench

    _set_threads(threads)
    return bench.bench_checkpoint(
        recipe=RECIPE, folder=folder, rounds=rounds, print_line=_print_line
    )


def gpu(  # noqa: PLR0913  flags of a command
    *,
    out: Path,
    heads: tuple[Literal["plain", "light", "squeeze", "guided", "bmask", "pointrend"], ...] = (
        "plain",
        "light",
    ),
    images: tuple[int, ...] = (8, 16),
    variants: tuple[Variant, ...] = ("eager", "channels-last", "compile"),
    height: int = 800,
    width: int = 1088,
    objects: int = 8,
    steps: int = 10,
    rounds: int = 3,
    feed_images: int = 256,
    photos: str = "",
    split: str = "train2017",
) -> Result:
    """Measure training steps, inference, and the feed on a GPU, and write a table.

    Args:
        out: folder for gpu.md and gpu.json.
        heads: mask heads.
        images: of a step, each in turn.
        variants: of the training step; inference is not compiled.
        height: of the images in pixels.
        width: of the images in pixels.
        objects: per image.
        steps: of a run.
        rounds: that count.
        feed_images: to draw if there are no photos; 0 leaves the feed out.
        photos: folder in the COCO layout to feed; "" draws images.
        split: of the photos.
    """
    from pipeline.bench import coco_folder, feeds
    from pipeline.bench import gpu as bench
    from pipeline.bench.peers import cache_folder

    shards = None
    if photos:
        shards = feeds.ingest_once(photos, split)
    elif feed_images:
        name = f"drawn-{feed_images}"
        drawn = cache_folder() / name
        coco_folder.write_coco_folder(drawn, images=feed_images, objects=7, size_hw=(480, 640))
        shards = feeds.ingest_once(str(drawn), coco_folder.SPLIT, name=name)
    config = bench.GpuBench(
        heads=heads,
        images=images,
        variants=variants,
        size_hw=(height, width),
        objects=objects,
        steps=steps,
        rounds=rounds,
        shards=shards,
        out=out,
    )
    return bench.bench_gpu(config, print_line=_print_line)


def train(*, shards: int = 400, steps: int = 60, rounds: int = 3) -> Result:
    """Train the quickstart's model on two workers, beside a bare loop under torchrun.

    Args:
        shards: of the data set, which is drawn into the cache.
        steps: of a run.
        rounds: that count.
    """
    from jobs.quickstart import RECIPE
    from pipeline.bench import training as bench

    return bench.bench_training(
        recipe=RECIPE, shards=shards, steps=steps, rounds=rounds, print_line=_print_line
    )


def scale(*, millions: tuple[int, ...] = (1, 4, 16)) -> Result:
    """Measure plan, manifest and list of samples for millions of images, of which none is read.

    Args:
        millions: of images, each a row of the table.
    """
    from pipeline.bench import scale as bench

    return bench.bench_scale(millions=millions, print_line=_print_line)


def useful_share(*, steps: int = 240, failure_every_s: float = 30.0, seed: int = 0) -> Result:
    """Kill a small run at random until it is finished, beside the share of time by the formula.

    Args:
        steps: of the run.
        failure_every_s: mean of the times between two failures.
        seed: of these times.
    """
    from pipeline.drill.useful_share import measure_useful_share

    return measure_useful_share(steps=steps, failure_every_s=failure_every_s, seed=seed)


def memory(*, images: int = 118_287, objects: int = 7) -> Result:
    """Measure the memory of ingest, driver, data tasks and worker as the data grows 16 times.

    Args:
        images: of the largest data set, drawn into the cache; the default is COCO's train2017.
        objects: per image.
    """
    from pipeline.bench import memory as bench

    return bench.bench_memory(images=images, objects=objects, print_line=_print_line)


def startup(*, rounds: int = 7) -> Result:
    """Predict one photo with jobs/predict.py, beside import torch, torchvision.ops.

    Args:
        rounds: that count.
    """
    from pipeline.bench import startup as bench

    job = Path(__file__).with_name("predict.py")
    return bench.bench_startup(job=job, rounds=rounds, print_line=_print_line)


def serve(
    *,
    clients: int = 4,
    seconds: float = 20,
    port: int = 8765,
    replicas: int = 1,
    threads: int = 1,
) -> Result:
    """Load the HTTP server while its alias moves to another version, then send bad requests.

    Args:
        clients: that each send one photo after the other.
        seconds: of load before the alias moves, and after it.
        port: of the server.
        replicas: of the server, a process with a copy of the model each.
        threads: of torch in this process, which only registers the models.
    """
    from pipeline.bench import serving as bench

    _set_threads(threads)
    return bench.bench_serving(
        clients=clients, seconds=seconds, port=port, replicas=replicas, print_line=_print_line
    )


def refiner(*, masks: int = 100, rounds: int = 2, threads: int = 1) -> Result:
    """Refine the masks of one photo of 800 px, beside the detector that finds as many objects.

    Args:
        masks: of the photo.
        rounds: that count.
        threads: of torch.
    """
    from jobs.refine_coco import MODEL as SHARP
    from jobs.refine_coco_fast import MODEL as FAST
    from pipeline.bench import refining as bench

    _set_threads(threads)
    return bench.bench_refiner(
        sharp=SHARP, fast=FAST, masks=masks, rounds=rounds, print_line=_print_line
    )


BENCHMARKS: dict[str, Verb] = {
    "paste": paste,
    "evaluation": evaluation,
    "detector": detector,
    "step": step,
    "feed": feed,
    "augmentations": augmentations,
    "semantic-feed": semantic_feed,
    "targets": targets,
    "refiner": refiner,
    "ingest": ingest,
    "checkpoint": checkpoint,
    "startup": startup,
    "train": train,
    "memory": memory,
    "scale": scale,
    "useful-share": useful_share,
    "gpu": gpu,
    "serve": serve,
}


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


_print_line = partial(print, flush=True)


def _list_benchmarks() -> None:
    width = max(map(len, BENCHMARKS))
    for name, verb in BENCHMARKS.items():
        print(f"{name:{width}}  {(verb.__doc__ or '').splitlines()[0]}")


if __name__ == "__main__":
    if "--list" in sys.argv[1:]:
        _list_benchmarks()
    else:
        run_verb(BENCHMARKS)
