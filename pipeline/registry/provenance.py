"""What stands behind a model: the data it was trained on, and what was measured on which images.

Kept as JSON beside a run's checkpoints and beside each registered version. Only numbers of the same
images are compared, so a measurement names them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from pipeline.data.manifest import Manifest
from pipeline.recipe import EvaluationConfig
from pipeline.tracking.environment import Environment

_TIMING = ("images", "seconds", "inference_ms")
"""How names begin that stand among the metrics of an evaluation and say nothing of the model."""

_HOW_IT_RUNS = ("max_images", "images_per_batch", "paste_bytes")
"""Settings of an evaluation that do not change what a number means."""


class Evaluated(Protocol):
    """What any evaluation gives."""

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers by name, images among them."""

    @property
    def per_category(self) -> dict[str, dict[str, float]]:
        """Numbers by name, by the category's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedOn:
    """The shards that a model saw."""

    fingerprint: str
    images: int
    annotations: int
    source: str
    """Where their rows come from, as ingest named it."""
    rejects: dict[str, int] = field(default_factory=dict)
    """How many images and annotations ingest left out, by reason."""
    category_images: dict[str, int] = field(default_factory=dict)
    """Images that show each category."""

    @classmethod
    def of(cls, manifest: Manifest) -> "TrainedOn":
        """Take what matters from a split's manifest."""
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
    def from_json(cls, text: str | bytes) -> "TrainedOn":
        """Read what to_json wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The numbers of one evaluation."""

    evaluated_on: str
    """Names the images and the rules: see `name_of`."""
    metrics: dict[str, float]
    """By name, 0 to 1; NaN where the images have no such objects."""
    per_category: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same by the category's name."""

    @classmethod
    def of(
        cls, evaluation: Evaluated, *, fingerprint: str, settings: EvaluationConfig
    ) -> "Measured":
        """Take the numbers of an evaluation.

        Args:
            evaluation: what was measured.
            fingerprint: of the split.
            settings: how it was measured.
        """
        return cls(
            evaluated_on=name_of(fingerprint, int(evaluation.metrics["images"]), settings),
            metrics={k: v for k, v in evaluation.metrics.items() if not k.startswith(_TIMING)},
            per_category=evaluation.per_category,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "Measured":
        """Read what to_json wrote."""
        plain = json.loads(text)
        return cls(
            evaluated_on=plain["evaluated_on"],
            metrics=_with_nan(plain["metrics"]),
            per_category={k: _with_nan(v) for k, v in plain["per_category"].items()},
        )


def name_of(fingerprint: str, images: int, settings: EvaluationConfig) -> str:
    """Name what numbers are measured on: equal names mean that numbers compare.

    Args:
        fingerprint: of the split.
        images: how many of it, those of the lowest ids.
        settings: rules that are not the usual ones take part.
    """
    usual = EvaluationConfig()
    rules = [
        f", {each.name} {value}"
        for each in fields(settings)
        if (value := getattr(settings, each.name)) != getattr(usual, each.name)
        and each.name not in _HOW_IT_RUNS
    ]
    return f"{fingerprint}, {images} images{''.join(rules)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where weights come from."""

    run_name: str
    run_id: str
    """MLflow's id."""
    started_from: str
    """The registered version whose weights the run started from; "" for none."""
    weights_bytes: int
    environment: Environment

    @classmethod
    def from_json(cls, text: str | bytes) -> "Origin":
        """Read what to_json wrote."""
        plain = json.loads(text)
        return cls(**{**plain, "environment": Environment(**plain["environment"])})


def without_nan(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Say null where there is no number: JSON knows no NaN."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: TrainedOn | Measured | Origin) -> str:
    """Write it as JSON, which from_json reads back."""
    return json.dumps(without_nan(asdict(value)), indent=1) + "\n"


def _with_nan(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in numbers.items()}
