#!/usr/bin/env python
"""Look at a data set or at models: one HTML file that opens from disk.

    python jobs/view.py data ~/shards/photos/train
    python jobs/view.py data ~/shards/photos/train --category cat dog --size small
    python jobs/view.py data ~/shards/photos/train --kernel-size 9 --out nine.html
    python jobs/view.py samples runs/first-try/recipe.json --first-step 40
    python jobs/view.py features models:/photos@champion --images ~/new-photos
    python jobs/view.py models models:/photos/1 models:/photos/2 --images ~/new-photos

A page holds all its pictures, so it can be sent as it is.
"""

from typing import Annotated

import tyro

from bsm.configs.rules import NonNegativeInt, PositiveInt
from pipeline.cli import Result, Verb, run_verb
from pipeline.data_view.options import ViewOptions
from pipeline.model_view.options import CompareOptions, FeatureOptions
from pipeline.text import format_count

DEFAULTS = ViewOptions()
FEATURE_DEFAULTS = FeatureOptions()
COMPARE_DEFAULTS = CompareOptions()


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


def samples(
    *,
    recipe: Annotated[str, tyro.conf.Positional],
    shards: str = "",
    samples: PositiveInt = 12,
    first_step: NonNegativeInt = 0,
    out: str = "samples.html",
) -> Result:
    """Show samples as a recipe trains them: crops, pasted objects, colors and damage.

    Args:
        recipe: file of a recipe, such as that of a run or what --print-recipe prints.
        shards: folder or URI of a split's shards; by default the recipe's training split.
        samples: number of samples.
        first_step: step of the first sample; the steps of a run show what it trained.
        out: file to write.
    """
    from pipeline import storage
    from pipeline.data_view.samples import view_samples
    from pipeline.recipe import from_json
    from pipeline.training.color_jitter import jitter_colors

    result = view_samples(
        from_json(storage.read_bytes(recipe)),
        shards=shards,
        samples=samples,
        first_step=first_step,
        on_device=jitter_colors,
        out=out,
    )
    print(f"view: {result['samples']} samples in {result['out']}")
    return result


def features(
    *,
    model: Annotated[str, tyro.conf.Positional],
    images: tuple[str, ...],
    show: Annotated[FeatureOptions, tyro.conf.arg(name="")] = FEATURE_DEFAULTS,
    out: str = "features.html",
    tracking_uri: str = "",
) -> Result:
    """Show what the squeeze of a model does: flows, boundary, and masks before and after.

    Args:
        model: models:/NAME@champion, or models:/NAME/VERSION.
        images: photos, and folders of photos.
        show: see `FeatureOptions`.
        out: file to write.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE; by default
            MLFLOW_TRACKING_URI, or else the embedded store runs/mlflow.db.
    """
    from pipeline.model_view.view_features import view_features

    print(f"loading {model}")
    result = view_features(model, images, show, out=out, tracking=tracking_uri)
    print(f"view: the squeeze of {result['model']} in {result['out']}")
    return result


def models(
    *,
    models: Annotated[tuple[str, ...], tyro.conf.Positional],
    images: tuple[str, ...],
    show: Annotated[CompareOptions, tyro.conf.arg(name="")] = COMPARE_DEFAULTS,
    truth: str = "",
    out: str = "models.html",
    tracking_uri: str = "",
) -> Result:
    """Show several models side by side on the same photos, with the truth if there is one.

    Args:
        models: two or more of models:/NAME@champion and models:/NAME/VERSION.
        images: photos, and folders of photos.
        show: see `CompareOptions`.
        truth: COCO annotation file that lists the photos.
        out: file to write.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE; by default
            MLFLOW_TRACKING_URI, or else the embedded store runs/mlflow.db.
    """
    from pipeline.model_view.view_models import view_models

    print(f"loading {', '.join(models)}")
    result = view_models(models, images, show, out=out, truth=truth, tracking=tracking_uri)
    shown = format_count(len(result["models"]), "model")
    print(f"view: {shown} on {format_count(result['photos'], 'photo')} in {result['out']}")
    return result


VERBS: dict[str, Verb] = {"data": data, "samples": samples, "features": features, "models": models}

if __name__ == "__main__":
    run_verb(VERBS)
