"""The Ray Serve deployment: a replica with all models, whose predictions run in batches."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ray import serve

from pipeline.server.app import build_app
from pipeline.server.batches import Prediction, PredictionJob, predict_jobs
from pipeline.server.live_model import LiveModel
from pipeline.server.metrics import ServerMetrics
from pipeline.server.options import ServeOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

_OTHER_REQUESTS = 32
"""Requests beside predictions that a replica answers at once: pages, /health, /metrics."""


class PhotoServer:
    """A replica: the models in memory, and the HTTP application that uses them.

    Args:
        names: of the models, the default first.
        registry: full tracking URI.
        options: of the server.
        token_digest: see `Backend`.
    """

    def __init__(
        self, names: Sequence[str], registry: str, options: ServeOptions, token_digest: str
    ) -> None:
        self.options = options
        self.token_digest = token_digest
        self.metrics = ServerMetrics()
        self.models: Mapping[str, LiveModel] = {
            name: LiveModel(name, registry=registry, on_swap=self._make_counter(name))
            for name in names
        }
        self.predict_batch.set_max_batch_size(options.max_batch)  # type: ignore[attr-defined]
        self.predict_batch.set_batch_wait_timeout_s(options.batch_wait_ms / 1000)  # type: ignore[attr-defined]
        for model in self.models.values():
            model.follow(every_s=options.check_alias_s)

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Build the application; Serve calls this once the models are loaded."""
        return build_app(self)

    async def predict(self, job: PredictionJob) -> Prediction:
        """Predict for a photo, together with others that wait; see `Backend`."""
        # Serve makes lists of the arguments.
        found: Prediction | BaseException = await self.predict_batch(job)
        if isinstance(found, BaseException):
            raise found
        return found

    @serve.batch
    async def predict_batch(self, jobs: list[PredictionJob]) -> list[Prediction | BaseException]:
        """Predict a batch in a thread, so that requests are read meanwhile."""
        self.metrics.batch.observe(len(jobs))
        return await asyncio.to_thread(predict_jobs, jobs)

    def _make_counter(self, name: str) -> Any:  # noqa: ANN401
        def count(problem: str) -> None:
            self.metrics.swaps.labels(name, "failed" if problem else "swapped").inc()

        return count


def build_application(
    names: Sequence[str], registry: str, options: ServeOptions, token_digest: str
) -> serve.Application:
    """Build the Serve application; for the arguments see `PhotoServer`."""
    make_deployment = serve.deployment(
        name="photos",
        num_replicas=options.replicas,
        max_ongoing_requests=options.max_waiting + _OTHER_REQUESTS,
        max_constructor_retry_count=1,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={
            "num_cpus": options.cpus,
            "num_gpus": options.gpus,
            # OpenCV's own limit, for files whose header does not say how large they are.
            "runtime_env": {"env_vars": {"OPENCV_IO_MAX_IMAGE_PIXELS": str(options.max_pixels)}},
        },
    )
    deployment: serve.Deployment = make_deployment(serve.ingress()(PhotoServer))
    application: serve.Application = deployment.bind(list(names), registry, options, token_digest)
    return application
