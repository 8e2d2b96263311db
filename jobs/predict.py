#!/usr/bin/env python
"""Predict for a folder of photos with a registered model, and draw what was found.

    python jobs/predict.py --model models:/NAME@champion --images photos/ --out out/

Writes out/detections.json and each photo with its masks. Needs no Ray.
"""

from pipeline.cli import Result, run_verb


def predict(
    *, model: str, images: str, out: str, tracking_uri: str = "", score: float = 0.5
) -> Result:
    """Predict for a folder of photos with a registered model, and draw what was found.

    Args:
        model: models:/NAME@champion, or models:/NAME/VERSION.
        images: folder, searched with its subfolders for jpg and png; or one photo.
        out: folder for detections.json and the drawn photos.
        tracking_uri: where the model is registered: http://HOST:PORT, or sqlite:///FILE; the
            embedded store runs/mlflow.db without.
        score: detections below are left out.
    """
    from pipeline.serving.predict import predict_folder, pull

    print(f"loading {model}")
    pulled = pull(model, tracking=tracking_uri)
    print(f"loaded {pulled.uri}, {len(pulled.categories)} categories")
    result = predict_folder(pulled, images, out, score=score)
    print(f"{result['detections']} detections in {result['images']} images: {result['out']}")
    return result


if __name__ == "__main__":
    run_verb(predict)
