"""Run a predictor over the chunks of a split, in this process or on Ray workers.

Results are returned in the order of the chunks, so the metrics do not depend on the number of
workers.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from pipeline.evaluation.result import ChunkResult, PredictorFactory
from pipeline.evaluation.split_reader import EvalChunk
from pipeline.progress import log_progress

IMAGES_PER_CHUNK = 8
"""Progress is logged between chunks."""


def run_chunks(
    model: nn.Module,
    chunks: Sequence[EvalChunk],
    make_predictor: PredictorFactory,
    *,
    num_workers: int = 0,
    use_gpu: bool = False,
) -> list[Any]:
    """Run a predictor over all chunks.

    Args:
        model: copied to the workers, if there are any.
        chunks: of the split.
        make_predictor: called once in each process.
        num_workers: number of Ray workers; 0 runs in this process, without Ray.
        use_gpu: use one GPU per worker, or move the model to this process's GPU. Otherwise a worker
            uses one CPU, and this process the device of the model.

    Returns:
        The results in the order of the chunks.
    """
    done: Iterator[tuple[EvalChunk, ChunkResult]]
    if num_workers == 0:
        predict = make_predictor(model.to("cuda") if use_gpu else model)
        done = ((chunk, predict(chunk)) for chunk in chunks)
    else:
        from pipeline.evaluation.ray_workers import run_on_ray  # noqa: PLC0415  imports ray

        done = run_on_ray(model, chunks, make_predictor, num_workers=num_workers, use_gpu=use_gpu)
    results = dict(
        log_progress(
            done,
            "evaluate",
            total=sum(len(chunk.rows) for chunk in chunks),
            images_of=lambda item: len(item[0].rows),
        )
    )
    return [results[chunk] for chunk in chunks]
