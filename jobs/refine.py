#!/usr/bin/env python
"""Sharpen the masks of any model, tool or annotator with a registered refiner.

    python jobs/refine.py --model models:/NAME@champion --images photos/ --out refined.json
        --detections results.json --truth instances.json
    python jobs/refine.py --model models:/NAME@champion --images photos/ --out cleaned.json
        --annotations instances.json
    python jobs/refine.py --model models:/NAME@champion --images photos/ --out refined/
        --labels masks/

Writes the same file or folder with sharper masks, and a contact sheet of those that changed most.
With --truth it prints AP and IoU before and after. Needs Ray only with --workers.
"""

from pipeline.cli import Result, run_verb


def refine(  # noqa: PLR0913  each is a flag
    *,
    model: str,
    images: str,
    out: str,
    detections: str = "",
    annotations: str = "",
    labels: str = "",
    truth: str = "",
    max_change: float = 0.5,
    workers: int = 0,
    use_gpu: bool = False,
    tracking_uri: str = "",
) -> Result:
    """Sharpen the masks of any model, tool or annotator with a registered refiner.

    Args:
        model: a refiner, models:/NAME@champion or models:/NAME/VERSION.
        images: folder or URI with the photos, searched recursively.
        out: file to write; for --labels a folder.
        detections: COCO results file with RLE or polygons, of any model; or detections.json of
            jobs/predict.py.
        annotations: COCO annotation file to clean up; crowds stay as they are.
        labels: folder of 8-bit PNGs whose values are instance ids; 0 is background, 255 is void.
            Each has the path of its photo.
        truth: COCO annotation file to compare the detections with, before and after; it also names
            their photos.
        max_change: masks that would change more (1 - IoU) are kept as given, and counted.
        workers: workers of Ray Data; 0 refines in this process, -1 takes one per CPU, or per GPU.
        use_gpu: use a GPU, one per worker.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE; by default
            MLFLOW_TRACKING_URI, or else the embedded store runs/mlflow.db.
    """
    from pipeline.refine.refine_files import RefineOptions, check_options, refine_files
    from pipeline.registry.predict import load_refiner

    options = RefineOptions(
        images=images,
        out=out,
        detections=detections,
        annotations=annotations,
        labels=labels,
        truth=truth,
        max_change=max_change,
        workers=workers,
        use_gpu=use_gpu,
    )
    check_options(options)
    print(f"loading {model}")
    refiner = load_refiner(model, tracking=tracking_uri)
    result = refine_files(refiner.model, refiner.uri, options)
    left_out = result["photos_left_out"]
    print(
        f"{result['refined']} of {result['masks']} masks refined, {result['kept']} kept"
        f"{f', {left_out} photos cannot be read' if left_out else ''}: {result['out']}"
    )
    return result


if __name__ == "__main__":
    run_verb(refine)
