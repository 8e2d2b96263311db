#!/usr/bin/env python
"""What happens to registered models: register, evaluate, compare, promote, roll back, list, show.

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
    from pipeline.registry.lifecycle import Measure
    from pipeline.registry.versions import Version

Model = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measuring:
    """How a version is measured where it was not yet."""

    max_images: int | None = None
    """Only the first so many images; all without it."""
    num_workers: int = 0
    """Ray workers that share the images; 0 works in this process, without Ray."""
    use_gpu: bool = False
    """On a GPU, one for each worker."""


HOW = Measuring()
How = Annotated[Measuring, tyro.conf.arg(name="")]


def list_models(
    *, model: Annotated[str, tyro.conf.Positional] = "", tracking_uri: str = ""
) -> Result:
    """List the versions of a model, or of all models, the newest first.

    Args:
        model: NAME; without it all models.
        tracking_uri: where they are registered: http://HOST:PORT, or sqlite:///FILE.
    """
    from pipeline.registry.version_table import format_versions
    from pipeline.registry.versions import find_all

    versions = find_all(_registry(tracking_uri), name=model)
    print(format_versions(versions) if versions else f"no version of {model or 'any model'}")
    return {"versions": [{"uri": each.uri, "aliases": list(each.aliases)} for each in versions]}


def show(*, model: Model, version: str = "", tracking_uri: str = "") -> Result:
    """Print the model card of a version.

    Args:
        model: NAME, models:/NAME@ALIAS or models:/NAME/VERSION.
        version: of NAME; its champion without it.
        tracking_uri: where it is registered: http://HOST:PORT, or sqlite:///FILE.
    """
    from pipeline.registry.lifecycle import content_of
    from pipeline.registry.model_card import card

    found = _find(model, version, tracking_uri)
    print(card(found, content_of(found)))
    return {"model": found.uri, "aliases": list(found.aliases), "metrics": found.metrics}


def register(
    *,
    run: Annotated[str, tyro.conf.Positional],
    name: str = "",
    license: str = "",
    tracking_uri: str = "",
) -> Result:
    """Register the model of a finished run, where training did not.

    Args:
        run: folder or URI of the run: STORAGE/NAME of its recipe.
        name: the registered model; what the recipe names without it.
        license: under which the weights may be used; it stands in the model card.
        tracking_uri: where to register: http://HOST:PORT, or sqlite:///FILE; what the recipe says
            without it.
    """
    from pipeline.training.finished_run import register_run

    made = register_run(run, name=name, tracking=tracking_uri, license=license)
    # The decision is in the log already.
    print(f"registered {made.uri}")
    return {"model": made.uri, "is_champion": made.is_champion, "decision": made.decision}


def evaluate(
    *,
    model: Model,
    data: str,
    version: str = "",
    how: How = HOW,
    tracking_uri: str = "",
) -> Result:
    """Measure a version on a split, and keep the numbers with it.

    Args:
        model: NAME, models:/NAME@ALIAS or models:/NAME/VERSION.
        data: folder or URI of a split's shards.
        version: of NAME; its champion without it.
        how: see `Measuring`.
        tracking_uri: where it is registered: http://HOST:PORT, or sqlite:///FILE.
    """
    from pipeline.registry.lifecycle import content_of
    from pipeline.registry.model_card import numbers
    from pipeline.registry.provenance import without_nan

    found = _find(model, version, tracking_uri)
    measure = _measuring(found, data, how)
    measured = measure(found)
    print("\n".join(numbers(measured, content_of(found))))
    return {"model": found.uri, **without_nan(asdict(measured))}


def compare(
    *,
    model: Model,
    version: str = "",
    against: str = "",
    data: str = "",
    how: How = HOW,
    tracking_uri: str = "",
) -> Result:
    """Put a version beside the champion, both measured on the same images.

    Args:
        model: NAME with --version, models:/NAME@ALIAS or models:/NAME/VERSION.
        version: of NAME.
        against: another version than the champion, by its number.
        data: folder or URI of a split's shards, to measure there what was not yet; without it the
            recorded numbers count, where both were measured on the same images.
        how: see `Measuring`.
        tracking_uri: where they are registered: http://HOST:PORT, or sqlite:///FILE.
    """
    from pipeline.errors import RegistryError
    from pipeline.registry.comparison import format_comparison
    from pipeline.registry.lifecycle import comparison_of, incomparable
    from pipeline.registry.provenance import without_nan
    from pipeline.registry.versions import find

    after = _find(model, version, tracking_uri)
    before = find(after.name, registry=after.registry, version=against)
    if before.version == after.version:
        raise RegistryError(
            f"{after.uri} would be compared with itself: name another version with --version, or "
            "with --against"
        )
    measure = _measuring(after, data, how) if data else None
    found = comparison_of(before, after, measure=measure)
    if found is None:
        raise RegistryError(incomparable(before, after))
    names = (f"version {each.version}" for each in (before, after))
    print(format_comparison(found, before=next(names), after=next(names)))
    return {"before": before.uri, "after": after.uri, **without_nan(found.numbers())}


def promote(
    *,
    model: Model,
    version: str = "",
    force: bool = False,
    reason: str = "",
    data: str = "",
    how: How = HOW,
    tracking_uri: str = "",
) -> Result:
    """Make a version the champion; refused where the number that decides falls.

    Args:
        model: NAME with --version, models:/NAME@ALIAS or models:/NAME/VERSION.
        version: of NAME.
        force: also where boundary AP (of label maps: the boundary F-score, or the mean IoU) falls,
            or was not measured on the same images.
        reason: why it is forced; kept in the registry and in the model card.
        data: folder or URI of a split's shards, to measure there what was not yet; without it the
            recorded numbers count, where both were measured on the same images.
        how: see `Measuring`.
        tracking_uri: where it is registered: http://HOST:PORT, or sqlite:///FILE.
    """
    from pipeline.registry import lifecycle

    found = _find(model, version, tracking_uri)
    measure = _measuring(found, data, how) if data else None
    decision = lifecycle.promote(found, force=force, reason=reason, measure=measure)
    print(decision.text)
    return {"model": decision.uri, "is_champion": True, "decision": decision.text}


def rollback(
    *, model: Annotated[str, tyro.conf.Positional], reason: str = "", tracking_uri: str = ""
) -> Result:
    """Return to the champion before; again goes one further back.

    Args:
        model: NAME.
        reason: why; kept in the registry and in the model cards.
        tracking_uri: where it is registered: http://HOST:PORT, or sqlite:///FILE.
    """
    from pipeline.registry import lifecycle

    decision = lifecycle.rollback(model, registry=_registry(tracking_uri), reason=reason)
    print(decision.text)
    return {"model": decision.uri, "is_champion": True, "decision": decision.text}


def _registry(tracking: str) -> str:
    from pipeline.tracking.stores import tracking_uri

    return tracking_uri(tracking, storage_uri="runs")


def _find(model: str, version: str, tracking: str) -> "Version":
    from pipeline.registry.versions import find

    return find(model, registry=_registry(tracking), version=version)


def _measuring(reference: "Version", data: str, how: Measuring) -> "Measure":
    """Measure versions by the settings of one of them."""
    from pipeline.registry.evaluate_version import measuring, settings_of

    workers = how.num_workers
    if workers:
        from pipeline.recipe import OptimConfig, Recipe, ScaleConfig
        from pipeline.training.capacity import start_ray

        scale = ScaleConfig(num_workers=workers, use_gpu=how.use_gpu)
        start_ray(Recipe(name="measure", scale=scale, optim=OptimConfig(global_batch=workers)))
    settings = replace(settings_of(reference), max_images=how.max_images)
    return measuring(data, settings, num_workers=workers, use_gpu=how.use_gpu)


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
