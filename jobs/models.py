#!/usr/bin/env python
"""List, show, register, evaluate, compare, promote and roll back registered models.

    python jobs/models.py list
    python jobs/models.py show bsm-coco
    python jobs/models.py register runs/first-try --name bsm-coco
    python jobs/models.py evaluate models:/bsm-coco/3 --data ~/shards/coco/val2017
    python jobs/models.py compare bsm-coco --version 3
    python jobs/models.py promote bsm-coco --version 3
    python jobs/models.py rollback bsm-coco

A model is NAME (its champion, or --version), models:/NAME@ALIAS or models:/NAME/VERSION. The
registry is --tracking-uri, else MLFLOW_TRACKING_URI, else the embedded store runs/mlflow.db.
"""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from pipeline.cli import Result, Verb, run_verb

if TYPE_CHECKING:
    from pipeline.registry.lifecycle import VersionEvaluator
    from pipeline.registry.versions import Version

Positional = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationOptions:
    """Options for the evaluation of a version."""

    max_images: int | None = None
    """Number of images to evaluate; by default all."""
    num_workers: int = 0
    """Ray workers that share the images; 0 evaluates in this process, without Ray."""
    use_gpu: bool = False
    """Use a GPU, one per worker."""
    flip: bool = False
    """Predict the mirror image too, and merge both."""
    scales: tuple[float, ...] = ()
    """Predict at each of these multiples of the model's test size, and merge: 0.8 1 1.25."""
    refine: str = ""
    """Refiner of the masks before they are scored, models:/NAME@ALIAS or models:/NAME/VERSION."""


DEFAULTS = EvaluationOptions()
Options = Annotated[EvaluationOptions, tyro.conf.arg(name="")]


def list_models(*, model: Positional = "", tracking_uri: str = "") -> Result:
    """List the versions of a model, or of all models, newest first.

    Args:
        model: NAME; by default all models.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE.
    """
    from pipeline.registry.version_table import format_versions
    from pipeline.registry.versions import list_versions

    versions = list_versions(_resolve_registry(tracking_uri), name=model)
    print(format_versions(versions) if versions else f"no versions of {model or 'any model'}")
    return {"versions": [{"uri": each.uri, "aliases": list(each.aliases)} for each in versions]}


def show(*, model: Positional, version: str = "", tracking_uri: str = "") -> Result:
    """Print the model card of a version.

    Args:
        model: NAME, models:/NAME@ALIAS or models:/NAME/VERSION.
        version: version of NAME; by default its champion.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE.
    """
    from pipeline.registry.lifecycle import read_card_content
    from pipeline.registry.model_card import format_card

    found = _find(model, version, tracking_uri)
    print(format_card(found, read_card_content(found)))
    return {"model": found.uri, "aliases": list(found.aliases), "metrics": found.metrics}


def register(
    *,
    run: Positional,
    name: str = "",
    license: str = "",
    tracking_uri: str = "",
) -> Result:
    """Register the model of a finished run, if training did not.

    Args:
        run: folder or URI of the run: STORAGE/NAME of its recipe.
        name: name of the registered model; by default the recipe's.
        license: license of the weights, for the model card; by default the recipe's.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE; by default the recipe's.
    """
    from pipeline.training.finished_run import register_run

    registered = register_run(run, name=name, tracking=tracking_uri, license=license)
    # The decision has been logged already.
    print(f"registered {registered.uri}")
    return {
        "model": registered.uri,
        "is_champion": registered.is_champion,
        "decision": registered.decision,
    }


def evaluate(
    *,
    model: Positional,
    data: str,
    version: str = "",
    how: Options = DEFAULTS,
    tracking_uri: str = "",
) -> Result:
    """Evaluate a version on a split, and keep the metrics with it.

    Args:
        model: NAME, models:/NAME@ALIAS or models:/NAME/VERSION.
        data: folder or URI of a split's shards.
        version: version of NAME; by default its champion.
        how: see `EvaluationOptions`.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE.
    """
    from pipeline.registry.lifecycle import read_card_content
    from pipeline.registry.model_card import format_evaluation
    from pipeline.registry.provenance import replace_nan

    found = _find(model, version, tracking_uri)
    record = _make_evaluator(found, data, how)(found)
    print("\n".join(format_evaluation(record, read_card_content(found))))
    return {"model": found.uri, **replace_nan(asdict(record))}


def compare(
    *,
    model: Positional,
    version: str = "",
    against: str = "",
    data: str = "",
    how: Options = DEFAULTS,
    tracking_uri: str = "",
) -> Result:
    """Compare a version with the champion on the same images.

    Args:
        model: NAME with --version, models:/NAME@ALIAS or models:/NAME/VERSION.
        version: version of NAME.
        against: number of the version to compare with; by default the champion.
        data: folder or URI of a split's shards, to evaluate both versions there; by default the
            recorded metrics are compared, if both have some on the same images.
        how: see `EvaluationOptions`.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE.
    """
    from pipeline.errors import RegistryError
    from pipeline.registry.comparison import format_comparison
    from pipeline.registry.lifecycle import compare_versions, format_incomparable
    from pipeline.registry.provenance import replace_nan
    from pipeline.registry.versions import find_version

    after = _find(model, version, tracking_uri)
    before = find_version(after.name, registry=after.registry, version=against)
    if before.version == after.version:
        raise RegistryError(
            f"{after.uri} would be compared with itself: choose another version with --version or "
            "--against"
        )
    evaluate_version = _make_evaluator(after, data, how) if data else None
    found = compare_versions(before, after, evaluate=evaluate_version)
    if found is None:
        raise RegistryError(format_incomparable(before, after))
    names = (f"version {each.version}" for each in (before, after))
    print(format_comparison(found, before=next(names), after=next(names)))
    return {"before": before.uri, "after": after.uri, **replace_nan(found.numbers())}


def promote(
    *,
    model: Positional,
    version: str = "",
    force: bool = False,
    reason: str = "",
    data: str = "",
    how: Options = DEFAULTS,
    tracking_uri: str = "",
) -> Result:
    """Make a version the champion; refused if the deciding metric falls.

    Args:
        model: NAME with --version, models:/NAME@ALIAS or models:/NAME/VERSION.
        version: version of NAME.
        force: promote it even if boundary AP (for label maps the boundary F-score or mean IoU, for
            refiners boundary IoU) falls or cannot be compared.
        reason: why it is forced; kept in the registry and in the model card.
        data: folder or URI of a split's shards, to evaluate both versions there; by default the
            recorded metrics are compared, if both have some on the same images.
        how: see `EvaluationOptions`.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE.
    """
    from pipeline.registry import lifecycle

    found = _find(model, version, tracking_uri)
    evaluate_version = _make_evaluator(found, data, how) if data else None
    decision = lifecycle.promote(found, force=force, reason=reason, evaluate=evaluate_version)
    print(decision.text)
    return {"model": decision.uri, "is_champion": True, "decision": decision.text}


def rollback(*, model: Positional, reason: str = "", tracking_uri: str = "") -> Result:
    """Return to the previous champion; each further call goes back one more.

    Args:
        model: NAME.
        reason: kept in the registry and in the model cards.
        tracking_uri: registry, http://HOST:PORT or sqlite:///FILE.
    """
    from pipeline.registry import lifecycle

    decision = lifecycle.rollback(model, registry=_resolve_registry(tracking_uri), reason=reason)
    print(decision.text)
    return {"model": decision.uri, "is_champion": True, "decision": decision.text}


def _resolve_registry(tracking: str) -> str:
    from pipeline.tracking.stores import resolve_tracking_uri

    return resolve_tracking_uri(tracking, storage_uri="runs")


def _find(model: str, version: str, tracking: str) -> "Version":
    from pipeline.registry.versions import find_version

    return find_version(model, registry=_resolve_registry(tracking), version=version)


def _make_evaluator(reference: "Version", data: str, how: EvaluationOptions) -> "VersionEvaluator":
    """Create an evaluator with the evaluation settings of one version."""
    from pipeline.registry.evaluate_version import make_evaluator, read_evaluation_config
    from pipeline.registry.predict import load_refiner

    workers = how.num_workers
    if workers:
        from pipeline.recipe import OptimConfig, Recipe, ScaleConfig
        from pipeline.training.capacity import start_ray

        scale = ScaleConfig(num_workers=workers, use_gpu=how.use_gpu)
        start_ray(Recipe(name="measure", scale=scale, optim=OptimConfig(global_batch=workers)))
    settings = read_evaluation_config(reference)
    settings = replace(
        settings,
        max_images=how.max_images,
        flip=how.flip or settings.flip,
        scales=how.scales or settings.scales,
    )
    refiner = load_refiner(how.refine, tracking=reference.registry) if how.refine else None
    return make_evaluator(data, settings, num_workers=workers, use_gpu=how.use_gpu, refiner=refiner)


VERBS: dict[str, Verb] = {
    "list": list_models,
    "show": show,
    "register": register,
    "evaluate": evaluate,
    "compare": compare,
    "promote": promote,
    "rollback": rollback,
}

if __name__ == "__main__":
    run_verb(VERBS)
