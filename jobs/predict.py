#!/usr/bin/env python
"""Predict for a folder of photos with a registered model, and draw what was found.

    python jobs/predict.py --model models:/NAME@champion --images photos/ --out out/

Writes each photo with what was found drawn on it, and out/detections.json; of a semantic model
out/label_maps/ instead, with a PNG for each photo, and out/label_maps.json. Needs no Ray.
"""

from pipeline.cli import Result, run_verb


def predict(
    *, model: str, images: str, out: str, tracking_uri: str = "", score: float | None = None
) -> Result:
    """Predict for a folder of photos with a registered model, and draw what was found.

    Args:
        model: models:/NAME@champion, or models:/NAME/VERSION.
        images: folder, searched with its subfolders for jpg and png; or one photo.
        out: folder for the drawn photos, and for detections.json or label_maps/.
        tracking_uri: where the model is registered: http://HOST:PORT, or sqlite:///FILE; the
            embedded store runs/mlflow.db without.
        score: of an instance model: detections below are left out; 0.5 unless said.
    """
    from pipeline.registry.predict import predict_folder, pull

    print(f"loading {model}")
    pulled = pull(model, tracking=tracking_uri)
    print(f"loaded {pulled.uri}, {len(pulled.categories)} categories")
    result = predict_folder(pulled, images, out, score=score)
    found = "label maps" if "label_maps" in result else f"{result['detections']} detections"
    print(f"{found} of {result['images']} images: {result['out']}")
    return result


if __name__ == "__main__":
    run_verb(predict)
