"""Record the training data and the evaluations of a model.

Stored as JSON beside a run's checkpoints and in each registered version. Only numbers on the same
images are compared, so each evaluation names its images.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.data.manifest import Manifest
from pipeline.data.text_files import parse_json, to_typed
from pipeline.errors import RegistryError
from pipeline.recipe import EvaluationConfig
from pipeline.tracking.environment import Environment

if TYPE_CHECKING:
    from pipeline.evaluation.result import Evaluation

_Kind = TypeVar("_Kind")

_TIMING = ("images", "seconds", "inference_ms")
"""Prefixes of timing metrics, which do not describe the model."""

_EXECUTION_SETTINGS = ("losses", "max_images", "images_per_batch", "paste_bytes")
"""Evaluation settings that do not change the meaning of a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """The training split of a model."""

    fingerprint: str
    images: int
    annotations: int
    source: str
    """Source of the rows, as recorded by ingest."""
    rejects: dict[str, int] = field(default_factory=dict)
    """Number of images and annotations dropped at ingest, by reason."""
    category_images: dict[str, int] = field(default_factory=dict)
    """Number of images per category."""

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> "TrainingData":
        """Summarize the manifest of a split."""
        names = [category.name for category in manifest.categories]
        return cls(
            fingerprint=manifest.fingerprint,
            images=manifest.images,
            annotations=manifest.annotations,
            source=manifest.source,
            rejects=dict(manifest.rejects),
            category_images=dict(zip(names, manifest.category_images, strict=False)),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "TrainingData":
        """Parse the output of to_json; raises RegistryError if it is another's."""
        return _parse(cls, text)


@dataclass(frozen=True, kw_only=True, slots=True)
class _StoredEvaluation:
    """An EvaluationRecord as JSON holds it: None for NaN."""

    evaluated_on: str
    metrics: dict[str, float | None]
    per_category: dict[str, dict[str, float | None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord:
    """The metrics of one evaluation."""

    evaluated_on: str
    """Images and rules; see `describe_evaluation_set`."""
    metrics: dict[str, float]
    """Between 0 and 1, by name; NaN without ground truth of that kind."""
    per_category: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metrics by category name and metric name."""

    @classmethod
    def from_evaluation(
        cls,
        evaluation: "Evaluation",
        *,
        fingerprint: str,
        settings: EvaluationConfig,
        refined_by: str = "",
    ) -> "EvaluationRecord":
        """Record the metrics of an evaluation.

        Args:
            evaluation: its result.
            fingerprint: fingerprint of the split.
            settings: its settings.
            refined_by: the registered refiner of the masks, models:/NAME/VERSION; "" for none.
        """
        images = int(evaluation.metrics["images"])
        return cls(
            evaluated_on=describe_evaluation_set(
                fingerprint, images, settings, refined_by=refined_by
            ),
            metrics={k: v for k, v in evaluation.metrics.items() if not k.startswith(_TIMING)},
            per_category=evaluation.per_category,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "EvaluationRecord":
        """Parse the output of to_json; raises RegistryError if it is another's."""
        plain = _parse(_StoredEvaluation, text)
        return cls(
            evaluated_on=plain.evaluated_on,
            metrics=_with_nan(plain.metrics),
            per_category={k: _with_nan(v) for k, v in plain.per_category.items()},
        )


def describe_evaluation_set(
    fingerprint: str, images: int, settings: EvaluationConfig, *, refined_by: str = ""
) -> str:
    """Name the images and rules of an evaluation; numbers with equal names are comparable.

    Args:
        fingerprint: fingerprint of the split.
        images: number of images evaluated, in order of their ids.
        settings: settings of the evaluation; only rules that differ from the defaults are named.
        refined_by: the registered refiner of the masks; "" for none.
    """
    defaults = EvaluationConfig()
    rules = [
        f", {each.name} {value}"
        for each in fields(settings)
        if (value := getattr(settings, each.name)) != getattr(defaults, each.name)
        and each.name not in _EXECUTION_SETTINGS
    ]
    refined = f", masks refined by {refined_by}" if refined_by else ""
    return f"{fingerprint}, {images} images{''.join(rules)}{refined}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The run that trained the weights."""

    run_name: str
    run_id: str
    """MLflow run id."""
    started_from: str
    """The registered version of the run's start weights; "" for none."""
    weights_bytes: int
    environment: Environment

    @classmethod
    def from_json(cls, text: str | bytes) -> "Origin":
        """Parse the output of to_json; raises RegistryError if it is another's."""
        return _parse(cls, text)


def replace_nan(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Replace NaN and infinity by None, as JSON has neither."""
    if isinstance(value, dict):
        return {name: replace_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [replace_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: TrainingData | EvaluationRecord | Origin) -> str:
    """Serialize to JSON, for from_json."""
    return json.dumps(replace_nan(asdict(value)), indent=1) + "\n"


def _parse(kind: type[_Kind], text: str | bytes) -> _Kind:
    try:
        return to_typed(kind, parse_json(text))
    except ValueError as error:
        raise RegistryError(
            f"a record of the model or run ({kind.__name__.strip('_')}) is damaged ({error}); "
            "restore it from a copy, or register the run again"
        ) from error


def _with_nan(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in numbers.items()}
