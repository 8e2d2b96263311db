#!/usr/bin/env python
"""Predict for a folder of photos with a registered model, and draw the predictions.

    python jobs/predict.py --model models:/NAME@champion --images photos/ --out out/

Writes each photo with the predictions drawn on it, and out/detections.json; for a semantic model
out/label_maps/ instead, with a PNG per photo, and out/label_maps.json. A photo that cannot be read
is left out, with the reason. Needs no Ray.
"""

from pipeline.cli import Result, run_verb


def predict(
    *,
    model: str,
    images: str,
    out: str,
    tracking_uri: str = "",
    score: float | None = None,
    refine: str = "",
) -> Result:
    """Predict for a folder of photos with a registered model, and draw the predictions.

    Args:
        model: models:/NAME@champion, or models:/NAME/VERSION.
        images: folder, searched recursively for JPEG, PNG, WebP, TIFF and BMP; or one photo.
        out: folder for the drawn photos and for detections.json or label_maps/.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE; by default the embedded store
            runs/mlflow.db.
        score: score threshold of an instance model, 0.5 by default.
        refine: refiner that sharpens the masks, models:/NAME@champion or models:/NAME/VERSION; by
            default none.
    """
    from pipeline.registry.predict import load_refiner, load_registered_model, predict_folder

    print(f"loading {model}")
    registered = load_registered_model(model, tracking=tracking_uri)
    print(f"loaded {registered.uri}, {len(registered.model.categories)} categories")
    refiner = load_refiner(refine, tracking=tracking_uri) if refine else None
    result = predict_folder(registered, images, out, score=score, refiner=refiner)
    kind = "label maps" if "label_maps" in result else f"{result['detections']} detections"
    left_out = f", {result['left_out']} left out" if result["left_out"] else ""
    print(f"{kind} for {result['images']} images{left_out}: {result['out']}")
    return result


if __name__ == "__main__":
    run_verb(predict)
