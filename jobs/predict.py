#!/usr/bin/env python
"""Predict for photos or a video with a registered or an exported model.

    python jobs/predict.py --model models:/NAME@champion --images photos/ --out out/
    python jobs/predict.py --model photos.onnx --images 'photos/*.jpg' --out out/ --format cutout
    python jobs/predict.py --model models:/NAME@champion --images aerial.tif --out out/ --tile 1024
    python jobs/predict.py --model models:/NAME@champion --images clip.mp4 --out out/

Writes each photo with the predictions drawn on it, and out/detections.json; for a semantic model
out/label_maps/ instead, with a PNG per photo, and out/label_maps.json. A photo that cannot be read
is left out, with the reason. Needs no Ray, and with an exported model no torch.
"""

from pathlib import Path
from typing import Annotated

import tyro

from pipeline.cli import Result, run_verb
from pipeline.prediction.options import PredictOptions

DEFAULTS = PredictOptions()


def predict(
    *,
    model: str,
    images: tuple[str, ...],
    out: str,
    tracking_uri: str = "",
    score: float | None = None,
    refine: str = "",
    options: Annotated[PredictOptions, tyro.conf.arg(name="")] = DEFAULTS,
) -> Result:
    """Predict for photos or a video with a registered or an exported model.

    Args:
        model: models:/NAME@champion, models:/NAME/VERSION, or a file that `bsm export model` wrote
            (.onnx).
        images: folders, searched recursively for JPEG, PNG, WebP, TIFF and BMP; photos; patterns
            such as 'photos/*.jpg'; or one video.
        out: folder for the files that --format lists.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE; by default
            MLFLOW_TRACKING_URI, or else the embedded store runs/mlflow.db.
        score: score threshold of an instance model, 0.5 by default.
        refine: refiner that sharpens the masks, models:/NAME@champion or models:/NAME/VERSION; by
            default none.
        options: see `PredictOptions`.
    """
    from pipeline.prediction.earlier_files import EarlierFiles
    from pipeline.prediction.folder import predict_folder
    from pipeline.prediction.load import load_model
    from pipeline.prediction.video import is_video, predict_video

    options.check()
    print(f"loading {model}")
    loaded = load_model(model, tracking=tracking_uri)
    print(f"loaded {loaded.uri}, {len(loaded.model.categories)} categories")
    refiner = None
    if refine:
        from pipeline.registry.predict import load_refiner

        refiner = load_refiner(refine, tracking=tracking_uri)
    earlier = EarlierFiles(Path(out))
    if any(is_video(each) for each in images):
        result = predict_video(loaded, images, out, score=score, refiner=refiner, options=options)
    else:
        result = predict_folder(loaded, images, out, score=score, refiner=refiner, options=options)
    kind = "label maps" if "detections" not in result else f"{result['detections']} detections"
    left_out = f", {result['left_out']} left out" if result["left_out"] else ""
    print(f"{kind} for {result['images']} images{left_out}: {result['out']}")
    left = earlier.warn()
    return {**result, "earlier_files": left} if left else result


if __name__ == "__main__":
    run_verb(predict)
